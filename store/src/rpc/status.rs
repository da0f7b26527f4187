//! Errors as etcd's clients know them: they match on code and text.

use tonic::{Code, Status};

use crate::command::ApplyError;
use crate::error::{MembersError, StoreError};

impl From<StoreError> for Status {
    fn from(error: StoreError) -> Self {
        let (code, text) = match &error {
            StoreError::Refused(refused) => (refusal(refused), refused.to_string()),
            StoreError::NotLeader | StoreError::BadTransferee => (Code::FailedPrecondition, prefixed(&error)),
            StoreError::NoLeader | StoreError::Timeout | StoreError::LeaderFailed | StoreError::Stopped => {
                (Code::Unavailable, prefixed(&error))
            }
            StoreError::TooManyRequests => (Code::ResourceExhausted, prefixed(&error)),
            StoreError::TooLarge => (Code::InvalidArgument, prefixed(&error)),
            StoreError::Members(refused) => (members(*refused), refused.to_string()),
            StoreError::Unsupported(what) => (Code::Unimplemented, format!("quorate: {what} is not supported yet")),
            StoreError::Engine(source) => (Code::Internal, format!("quorate: {error}: {source}")),
            StoreError::Snapshot(source) => (Code::Internal, format!("quorate: {error}: {source}")),
        };
        Status::new(code, text)
    }
}

fn prefixed(error: &StoreError) -> String {
    format!("etcdserver: {error}")
}

fn members(error: MembersError) -> Code {
    match error {
        MembersError::BadPeerUrls => Code::InvalidArgument,
        MembersError::NotFound => Code::NotFound,
        MembersError::Unhealthy => Code::Unavailable,
        _ => Code::FailedPrecondition,
    }
}

fn refusal(error: &ApplyError) -> Code {
    match error {
        ApplyError::EmptyKey
        | ApplyError::KeyNotFound
        | ApplyError::ValueProvided
        | ApplyError::LeaseProvided
        | ApplyError::TooManyOps
        | ApplyError::DuplicateKey
        | ApplyError::InvalidSortOption
        | ApplyError::DowngradeVersionFormat
        | ApplyError::DowngradeVersion
        | ApplyError::NotReadOnly
        | ApplyError::UserEmpty
        | ApplyError::RoleEmpty
        | ApplyError::AuthFailed
        | ApplyError::PermissionNotGiven
        | ApplyError::InvalidAuthManagement
        | ApplyError::AuthOldRevision => Code::InvalidArgument,
        ApplyError::Compacted | ApplyError::FutureRevision | ApplyError::LeaseTtlTooLarge => Code::OutOfRange,
        ApplyError::LeaseNotFound => Code::NotFound,
        ApplyError::LeaseExists
        | ApplyError::FenceNotCurrent
        | ApplyError::DowngradeInProgress
        | ApplyError::NoDowngrade
        | ApplyError::RootUserNotExist
        | ApplyError::RootRoleNotExist
        | ApplyError::UserAlreadyExist
        | ApplyError::UserNotFound
        | ApplyError::RoleAlreadyExist
        | ApplyError::RoleNotFound
        | ApplyError::RoleNotGranted
        | ApplyError::PermissionNotGranted
        | ApplyError::AuthNotEnabled
        | ApplyError::MemberRemoved
        | ApplyError::OtherDirectory => Code::FailedPrecondition,
        ApplyError::PermissionDenied => Code::PermissionDenied,
        ApplyError::InvalidAuthToken => Code::Unauthenticated,
        ApplyError::NoPasswordUser | ApplyError::VerifyOnly | ApplyError::PasswordTooLong => Code::Unknown,
        ApplyError::NoSpace => Code::ResourceExhausted,
        ApplyError::Corrupt => Code::DataLoss,
        ApplyError::RequestExpired => Code::Unavailable,
        ApplyError::Undecodable(_) => Code::Internal,
    }
}

/// A message that was too large to be read, in the words of etcd's gRPC library; none if
/// `status` says something else.
pub(super) fn of_large_message(status: &Status) -> Option<Status> {
    let sizes = status.message().strip_prefix("Error, decoded message length too large: found ")?;
    let (found, limit) = sizes.split_once(" bytes, the limit is: ")?;
    let limit = limit.strip_suffix(" bytes")?;
    Some(Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_texts_are_etcds() {
        let check = |error: StoreError, code: Code, text: &str| {
            let status = Status::from(error);
            assert_eq!((status.code(), status.message()), (code, text));
        };
        check(ApplyError::EmptyKey.into(), Code::InvalidArgument, "etcdserver: key is not provided");
        check(ApplyError::TooManyOps.into(), Code::InvalidArgument, "etcdserver: too many operations in txn request");
        check(ApplyError::Compacted.into(), Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
        check(ApplyError::LeaseNotFound.into(), Code::NotFound, "etcdserver: requested lease not found");
        check(ApplyError::LeaseExists.into(), Code::FailedPrecondition, "etcdserver: lease already exists");
        check(ApplyError::FenceNotCurrent.into(), Code::FailedPrecondition, "quorate: fence is no longer current");
        check(ApplyError::NoSpace.into(), Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
        check(ApplyError::Corrupt.into(), Code::DataLoss, "etcdserver: corrupt cluster");
        check(
            ApplyError::DowngradeInProgress.into(),
            Code::FailedPrecondition,
            "etcdserver: cluster has a downgrade job in progress",
        );
        check(ApplyError::NoDowngrade.into(), Code::FailedPrecondition, "etcdserver: no inflight downgrade job");
        check(
            ApplyError::DowngradeVersionFormat.into(),
            Code::InvalidArgument,
            "etcdserver: wrong downgrade target version format",
        );
        check(
            ApplyError::DowngradeVersion.into(),
            Code::InvalidArgument,
            "etcdserver: invalid downgrade target version",
        );
        check(StoreError::NoLeader, Code::Unavailable, "etcdserver: no leader");
        check(StoreError::Timeout, Code::Unavailable, "etcdserver: request timed out");
        check(
            StoreError::LeaderFailed,
            Code::Unavailable,
            "etcdserver: request timed out, possibly due to previous leader failure",
        );
        check(StoreError::Stopped, Code::Unavailable, "etcdserver: server stopped");
        check(StoreError::NotLeader, Code::FailedPrecondition, "etcdserver: not leader");
        check(StoreError::BadTransferee, Code::FailedPrecondition, "etcdserver: bad leader transferee");
        check(StoreError::TooLarge, Code::InvalidArgument, "etcdserver: request is too large");
        check(StoreError::TooManyRequests, Code::ResourceExhausted, "etcdserver: too many requests");
        let check_members = |error: MembersError, code, text| check(error.into(), code, text);
        check_members(MembersError::NotFound, Code::NotFound, "etcdserver: member not found");
        check_members(MembersError::Unhealthy, Code::Unavailable, "etcdserver: unhealthy cluster");
        check_members(MembersError::Learner, Code::FailedPrecondition, "etcdserver: rpc not supported for learner");
        check(StoreError::Unsupported("X"), Code::Unimplemented, "quorate: X is not supported yet");
    }

    #[test]
    fn a_message_that_is_too_large_is_refused_in_gos_words() {
        let ours =
            Status::out_of_range("Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes");
        let theirs = of_large_message(&ours).expect("it is about a large message");
        assert_eq!(theirs.code(), Code::ResourceExhausted);
        assert_eq!(theirs.message(), "grpc: received message larger than max (9 vs. 8)");
        assert!(of_large_message(&Status::out_of_range("anything else")).is_none());
    }
}
