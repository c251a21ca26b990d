"""The P2M of one domain: page-table pages, entry formats, shattering, message handlers."""
