"""Starting workers, here or on another machine, and looking after each until it has ended and its run is settled."""
