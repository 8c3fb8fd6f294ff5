"""Several processes, one a GPU, that train together: started, connected, and watched."""
