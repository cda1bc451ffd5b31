"""What happens around every call, one concern a module. The order is told in `rpc/server.py`."""
