"""Keys of users and administrators: where they come from, who presents one, how one is made."""
