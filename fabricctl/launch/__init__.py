"""``fabricctl run``: starts ranks, sees who dies, starts them again on what is left and a spare."""
