//! What the card services share.
