"""Other regions: what they are granted, what they ask, how they are asked, and what a link may carry."""
