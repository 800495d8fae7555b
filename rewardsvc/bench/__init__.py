"""`rewardsvc bench`: load from processes of their own, and what the server made of it."""
