//! The messages of etcd's service for users and roles, as far as they are used.

use bytes::Bytes;
use prost::Message;

use crate::grpc::Method;
use crate::wire::{Headed, Header, headed};

pub(super) const AUTH_STATUS: Method = "/etcdserverpb.Auth/AuthStatus";
pub(super) const ROLE_ADD: Method = "/etcdserverpb.Auth/RoleAdd";
pub(super) const ROLE_GET: Method = "/etcdserverpb.Auth/RoleGet";
pub(super) const ROLE_DELETE: Method = "/etcdserverpb.Auth/RoleDelete";
pub(super) const ROLE_GRANT: Method = "/etcdserverpb.Auth/RoleGrantPermission";
pub(super) const ROLE_REVOKE: Method = "/etcdserverpb.Auth/RoleRevokePermission";
pub(super) const USER_ADD: Method = "/etcdserverpb.Auth/UserAdd";
pub(super) const USER_GET: Method = "/etcdserverpb.Auth/UserGet";
pub(super) const USER_DELETE: Method = "/etcdserverpb.Auth/UserDelete";
pub(super) const USER_PASSWORD: Method = "/etcdserverpb.Auth/UserChangePassword";
pub(super) const USER_GRANT: Method = "/etcdserverpb.Auth/UserGrantRole";

/// To read.
pub(super) const READ: i32 = 0;
/// To read and write.
pub(super) const READWRITE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AuthStatus {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(bool, tag = "2")]
    pub(super) enabled: bool,
}

/// Names a role or a user.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub(super) struct Permission {
    #[prost(int32, tag = "1")]
    pub(super) kind: i32,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) range_end: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Role {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(message, repeated, tag = "2")]
    pub(super) permissions: Vec<Permission>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Grant {
    #[prost(string, tag = "1")]
    pub(super) role: String,
    #[prost(message, optional, tag = "2")]
    pub(super) permission: Option<Permission>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Revoke {
    #[prost(string, tag = "1")]
    pub(super) role: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) key: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) range_end: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct UserOptions {
    #[prost(bool, tag = "1")]
    pub(super) no_password: bool,
}

/// A new user, or a user's new password. Never logged: it has no place in an error.
#[derive(Clone, PartialEq, Message)]
pub(super) struct UserWithPassword {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) password: String,
    #[prost(message, optional, tag = "3")]
    pub(super) options: Option<UserOptions>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct User {
    #[prost(message, optional, tag = "1")]
    pub(super) header: Option<Header>,
    #[prost(string, repeated, tag = "2")]
    pub(super) roles: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct UserRole {
    #[prost(string, tag = "1")]
    pub(super) user: String,
    #[prost(string, tag = "2")]
    pub(super) role: String,
}

headed!(AuthStatus, Role, User);
