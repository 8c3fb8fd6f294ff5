"""Training in several processes, one per GPU: how they are started, connected and watched."""
