//! The node agent of platctrl: turns pod intent into running processes.

pub mod hoist;
