"""The execution model: handlers that await only our traps, and the host that drives them."""
