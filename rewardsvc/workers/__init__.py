"""Worker processes: one device each, all behind one port. The front process dispatches to them."""
