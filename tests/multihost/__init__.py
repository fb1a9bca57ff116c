"""A cluster of several hosts on one machine: network namespaces, real `ray up`."""
