"""Which replica a request goes to: what is known of the replicas, and the policies that choose among them."""
