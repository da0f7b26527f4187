//! Time as the API tells it: whole seconds.

use std::time::Duration;

use jiff::Timestamp;

/// The present, cut to the second: what goes into an object's timestamps.
pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).expect("the present is a timestamp")
}

/// A wait computed from cut times, lengthened so that it is never too short.
pub(crate) fn later(wait: Duration) -> Duration {
    wait + Duration::from_secs(1)
}
