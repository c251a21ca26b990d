"""What the page of ``profile`` is made of: HTML, CSS, JavaScript."""
