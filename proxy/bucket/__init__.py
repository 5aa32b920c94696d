"""Object storage: the tier of blobs that nodes share, behind their disks."""
