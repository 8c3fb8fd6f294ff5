"""Several processes that train together: started, connected, and watched."""
