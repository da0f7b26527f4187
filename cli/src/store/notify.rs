//! What systemd is told of a unit with `Type=notify`: one datagram per message.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// systemd's word for where to send; unset when nobody listens.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The manager that started this process, if it wants to know.
#[derive(Debug)]
pub(super) struct Manager(Option<(UnixDatagram, SocketAddr)>);

impl Manager {
    pub(super) fn of_this_process() -> Self {
        let Some(place) = std::env::var_os(VARIABLE).filter(|place| !place.is_empty()) else { return Self(None) };
        match Self::at(&place) {
            Ok(manager) => manager,
            Err(error) => {
                tracing::warn!(%error, place = %place.to_string_lossy(), "the service manager cannot be told anything");
                Self(None)
            }
        }
    }

    fn at(place: &OsStr) -> io::Result<Self> {
        // A leading @ stands for the NUL byte of an abstract name.
        let address = match place.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(place)?,
        };
        Ok(Self(Some((UnixDatagram::unbound()?, address))))
    }

    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// Asks for `time` more before the start counts as failed.
    pub(super) fn waiting(&self, time: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}\nSTATUS=waiting for a quorum of members", time.as_micros()));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=handing leadership over and finishing requests");
    }

    fn tell(&self, message: &str) {
        let Some((socket, address)) = &self.0 else { return };
        // A manager that is gone needs no news.
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_hears_each_message() {
        let folder = std::env::temp_dir().join(format!("quorate-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&folder);
        let socket = UnixDatagram::bind(&folder).unwrap();
        let manager = Manager::at(folder.as_os_str()).unwrap();
        manager.waiting(Duration::from_secs(2));
        manager.ready();
        let mut buffer = [0; 256];
        let mut heard = || {
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        assert!(heard().starts_with("EXTEND_TIMEOUT_USEC=2000000\n"));
        assert!(heard().starts_with("READY=1\n"));
        std::fs::remove_file(&folder).unwrap();
    }
}
