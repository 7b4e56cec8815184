//! Derive macro for platctrl kinds.
