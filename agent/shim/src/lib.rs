//! The per-launchable supervisor of platctrl.
