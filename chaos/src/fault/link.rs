//! Links between processes of one machine, cut: an nftables table drops their packets where
//! they arrive, so that also connections that are there fall silent, as on a broken wire.
//!
//! Always: a rule matches two loopback addresses and a port at which one of them listens;
//! nothing else of the machine is touched. A table is named after the process that made it.

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::process;

/// Every table's name begins with it.
const PREFIX: &str = "quorate_drill_";

/// One way of a link. Both ends are where one listens for the other; the ends of connections
/// that they dial have the same addresses and any port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub from: SocketAddr,
    pub to: SocketAddr,
}

/// The table of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    pid: u32,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.pid)
    }
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pid = text.strip_prefix(PREFIX).and_then(|pid| pid.parse().ok());
        pid.map(|pid| Self { pid }).ok_or_else(|| format!("{text:?} is not of the form {PREFIX}PID"))
    }
}

impl Table {
    pub fn of_this_process() -> Self {
        Self { pid: std::process::id() }
    }

    /// Makes the table, which loses nothing yet.
    ///
    /// # Errors
    /// Without root or nft.
    pub fn make(self) -> Result<()> {
        nft(&self.made())
    }

    /// From now on what goes these ways is lost, and nothing else.
    ///
    /// # Errors
    /// When an address is not of the loopback, or the table is gone: one that was removed
    /// stays removed.
    pub fn lose(self, ways: &[Way]) -> Result<()> {
        for Way { from, to } in ways {
            ensure!(from.ip().is_loopback() && to.ip().is_loopback(), "{from} and {to} are not on the loopback");
        }
        nft(&self.losing(ways))
    }

    /// Removes the table, if it is there.
    ///
    /// # Errors
    /// Without root or nft.
    pub fn remove(self) -> Result<()> {
        nft(&self.removed())
    }

    fn made(self) -> String {
        format!("table inet {self} {{\nchain input {{\ntype filter hook input priority 0; policy accept;\n}}\n}}\n")
    }

    /// All of it takes effect at once.
    fn losing(self, ways: &[Way]) -> String {
        let mut script = format!("flush chain inet {self} input\n");
        for Way { from, to } in ways {
            let family = if to.is_ipv4() { "ip" } else { "ip6" };
            // Of a connection that `from` has dialled, and of one that it has accepted.
            for ports in [format!("tcp dport {}", to.port()), format!("tcp sport {}", from.port())] {
                script += &format!(
                    "add rule inet {self} input iifname \"lo\" {family} saddr {} {family} daddr {} {ports} drop\n",
                    from.ip(),
                    to.ip()
                );
            }
        }
        script
    }

    fn removed(self) -> String {
        // Without the first line it would fail when there is none.
        format!("table inet {self} {{}}\ndelete table inet {self}\n")
    }
}

/// Tables of processes that have ended: their packets are still lost.
///
/// # Errors
/// When there can be no tables here; says what to do.
pub fn left_behind() -> Result<Vec<Table>> {
    Ok(listed()?.into_iter().filter(|table| !process::exists(table.pid)).collect())
}

fn listed() -> Result<Vec<Table>> {
    let output = Command::new("nft").args(["list", "tables"]).stdin(Stdio::null()).output();
    let output = output.context("the program nft cannot be run: apt-get install nftables")?;
    if !output.status.success() {
        let says = String::from_utf8_lossy(&output.stderr);
        bail!("nft is refused ({}): run the drill as root", says.lines().next().unwrap_or_default().trim());
    }
    Ok(tables(&String::from_utf8_lossy(&output.stdout)))
}

/// Those of drills among all that nft lists.
fn tables(listed: &str) -> Vec<Table> {
    listed.lines().filter_map(|line| line.strip_prefix("table inet ")?.trim().parse().ok()).collect()
}

fn nft(script: &str) -> Result<()> {
    let mut command = Command::new("nft");
    // Ctrl-C in the terminal is for whoever runs it to handle.
    command.args(["-f", "-"]).process_group(0);
    super::feed(command, script)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use quorate_transport::loopback::free_address;
    use tokio::net::TcpSocket;

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_way_is_lost_whoever_has_dialled() {
        let table = Table { pid: 7 };
        let way = Way { from: at("127.0.10.1:2380"), to: at("127.0.10.2:2390") };
        let rule = "add rule inet quorate_drill_7 input iifname \"lo\" ip saddr 127.0.10.1 ip daddr 127.0.10.2";
        assert_eq!(
            table.losing(&[way]).lines().collect::<Vec<_>>(),
            [
                "flush chain inet quorate_drill_7 input",
                &format!("{rule} tcp dport 2390 drop"),
                &format!("{rule} tcp sport 2380 drop"),
            ]
        );
        assert_eq!(table.losing(&[]), "flush chain inet quorate_drill_7 input\n");
        let way = Way { from: at("[::1]:2380"), to: at("[::1]:2390") };
        assert!(table.losing(&[way]).contains("ip6 saddr ::1 ip6 daddr ::1 tcp dport 2390 drop\n"));
        assert_eq!(table.removed(), "table inet quorate_drill_7 {}\ndelete table inet quorate_drill_7\n");
    }

    #[test]
    fn only_the_loopback_loses_packets() {
        let way = Way { from: at("127.0.10.1:2380"), to: at("192.0.2.1:2380") };
        let refused = Table::of_this_process().lose(&[way]).unwrap_err();
        assert!(refused.to_string().contains("192.0.2.1"), "{refused}");
    }

    #[test]
    fn tables_are_known_by_their_names() {
        let listed = "table ip nat\ntable inet quorate_drill_12\ntable inet quorate_drill_\ntable inet other_12\n";
        assert_eq!(tables(listed), [Table { pid: 12 }]);
        assert_eq!(Table { pid: 12 }.to_string().parse(), Ok(Table { pid: 12 }));
        assert!("filter".parse::<Table>().is_err());
    }

    /// Sends a byte; whether it has arrived in time.
    fn arrives(from: &mut TcpStream, to: &mut TcpStream) -> bool {
        from.write_all(b"x").unwrap();
        match to.read(&mut [0]) {
            Ok(count) => count == 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Leaves no table, also when the test fails.
    struct Removed(Table);

    impl Drop for Removed {
        fn drop(&mut self) {
            let _ = self.0.remove();
        }
    }

    #[test]
    fn connections_that_are_there_fall_silent_and_speak_again() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let here = at("127.0.0.9:1");
        let listener = TcpListener::bind(free_address()).unwrap();
        let there = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut near = runtime.block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(here.ip(), 0)).unwrap();
            socket.connect(there).await.unwrap().into_std().unwrap()
        });
        near.set_nonblocking(false).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        for stream in [&near, &far] {
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        }
        let out = Way { from: here, to: there };
        let table = Table::of_this_process();
        let _removed = Removed(table);
        table.make().unwrap();
        assert!(arrives(&mut near, &mut far) && arrives(&mut far, &mut near), "a table alone loses nothing");
        table.lose(&[out]).unwrap();
        assert!(!arrives(&mut near, &mut far), "the way is lost");
        assert!(arrives(&mut far, &mut near), "the way back is not");
        table.lose(&[]).unwrap();
        far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap(), 1, "what was lost is sent again");
        table.remove().unwrap();
        table.remove().unwrap();
        assert!(table.lose(&[out]).is_err(), "what was removed stays removed");
        assert!(!listed().unwrap().contains(&table));
    }
}
