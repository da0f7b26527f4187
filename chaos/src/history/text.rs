//! What proofs print.

use super::event::{
    Answer, Client, EventKind, KeyValue, Keys, Member, Read, Reply, Request, Revision, Term, WatchEvent,
};
use super::{Operation, Outcome, Watch};

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Term {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "m{}", self.0)
    }
}

impl std::fmt::Display for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "c{}", self.0)
    }
}

impl std::fmt::Display for KeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { key, value, create_revision, mod_revision, version, lease } = self;
        write!(f, "{key}={value} (create {create_revision}, mod {mod_revision}, version {version}")?;
        match lease {
            0 => f.write_str(")"),
            lease => write!(f, ", lease {lease})"),
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Get { key, read: Read::Linearizable } => write!(f, "get {key}"),
            Self::Get { key, read: Read::Serializable } => write!(f, "get {key} serializable"),
            Self::Get { key, read: Read::At(revision) } => write!(f, "get {key} serializable at {revision}"),
            Self::Put { key, value, lease: 0 } => write!(f, "put {key}={value}"),
            Self::Put { key, value, lease } => write!(f, "put {key}={value} lease {lease}"),
            Self::Delete { key } => write!(f, "delete {key}"),
            Self::CompareAndSwap { key, expected, value: Some(value) } => {
                write!(f, "put {key}={value} if mod {expected}")
            }
            Self::CompareAndSwap { key, expected, value: None } => write!(f, "delete {key} if mod {expected}"),
            Self::PutAll { puts } => {
                f.write_str("put")?;
                puts.iter().try_for_each(|(key, value)| write!(f, " {key}={value}"))
            }
            Self::Compact { revision } => write!(f, "compact {revision}"),
            Self::Grant { lease, ttl_seconds } => write!(f, "grant lease {lease} for {ttl_seconds} s"),
            Self::KeepAlive { lease } => write!(f, "keep lease {lease} alive"),
            Self::Revoke { lease } => write!(f, "revoke lease {lease}"),
        }
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.answer {
            Answer::Done => f.write_str("done")?,
            Answer::Found(Some(kv)) => kv.fmt(f)?,
            Answer::Found(None) => f.write_str("nothing")?,
            Answer::Deleted(true) => f.write_str("deleted")?,
            Answer::Deleted(false) => f.write_str("nothing to delete")?,
            Answer::Refused(Some(kv)) => write!(f, "refused, for there is {kv}")?,
            Answer::Refused(None) => f.write_str("refused, for there is nothing")?,
            Answer::Ttl(0) => f.write_str("no such lease")?,
            Answer::Ttl(seconds) => write!(f, "{seconds} s")?,
        }
        if let Some(revision) = self.revision {
            write!(f, " at revision {revision}")?;
        }
        if let Some(term) = self.term {
            write!(f, " in term {term}")?;
        }
        Ok(())
    }
}

/// A line that a person can read: when, who, whom, what, and what became of it.
impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let began = self.invoked_nanos as f64 / 1e9;
        let ended = |nanos: u64| nanos as f64 / 1e9;
        let Self { client, member, request, .. } = self;
        match &self.outcome {
            Outcome::Ok { at_nanos, reply } => {
                write!(f, "[{began:.6} s to {:.6} s] {client} asks {member}: {request} -> {reply}", ended(*at_nanos))
            }
            Outcome::Fail { at_nanos, error } => {
                write!(f, "[{began:.6} s to {:.6} s] {client} asks {member}: {request} -> failed: ", ended(*at_nanos))?;
                f.write_str(error)
            }
            Outcome::Unknown { error } => {
                write!(f, "[{began:.6} s to ?] {client} asks {member}: {request} -> unknown")?;
                error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
            }
        }
    }
}

impl std::fmt::Display for WatchEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            EventKind::Put => write!(f, "put {}", self.kv)?,
            EventKind::Delete => write!(f, "delete {} (mod {})", self.kv.key, self.kv.mod_revision)?,
        }
        self.prev.as_ref().map_or(Ok(()), |prev| write!(f, " over {prev}"))
    }
}

/// Enough to find it in the history again.
impl std::fmt::Display for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { id, watcher, member, request, .. } = self;
        let keys = match &request.keys {
            Keys::All => "all keys".to_owned(),
            Keys::Prefix(prefix) => format!("{prefix}*"),
            Keys::One(key) => key.clone(),
        };
        write!(f, "watch {} of {watcher} on {member} ({keys} from {})", id.0, request.start_revision)
    }
}
