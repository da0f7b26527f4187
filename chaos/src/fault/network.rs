//! A network of the test's own: a namespace for each member, and one with the switch between
//! them, where the clients are. Nothing of it has a name; it goes when the test's process
//! does, however that ends.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};

/// How long making a namespace may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is wrong between members; clients reach all members but those that are alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing goes from one member to another; the way back is open.
    OneWay { from: usize, to: usize },
    /// Nothing goes between this member and the others.
    Cut { member: usize },
    /// Nothing goes between this member and anybody, clients too.
    Alone { member: usize },
    /// So many packets in a hundred are lost between members.
    Loss { percent: u32 },
    /// What goes to this member waits in a queue: so many kbit/s.
    Thin { member: usize, kbit: u32 },
}

/// See the module.
pub struct Network {
    switch: Holder,
    members: Vec<Holder>,
}

/// A process that does nothing but keep a namespace. It reads from a pipe that only this
/// process holds, and ends with it.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Holder {
    fn start() -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        // Ctrl-C ends the test first, which may still want to mend things.
        command.process_group(0);
        let holder = Self(command.spawn().context("cannot run unshare; install util-linux")?);
        let own = fs::read_link("/proc/self/ns/net")?;
        let deadline = Instant::now() + PATIENCE;
        while fs::read_link(holder.path()).is_ok_and(|namespace| namespace == own) {
            ensure!(Instant::now() < deadline, "no network namespace; run as root");
            std::thread::yield_now();
        }
        Ok(holder)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs a command in the namespace.
    fn enter(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path())).arg(program);
        command
    }

    fn run(&self, program: &str, arguments: &[&str], input: &str) -> Result<()> {
        let mut command = self.enter(program);
        command.args(arguments);
        super::feed(command, input)
    }
}

impl Network {
    /// # Errors
    /// Without root, or without the packages iproute2, nftables and util-linux.
    pub fn new(members: usize) -> Result<Self> {
        let network =
            Self { switch: Holder::start()?, members: (0..members).map(|_| Holder::start()).collect::<Result<_>>()? };
        let mut script = String::from("link set lo up\nlink add br0 type bridge\naddr add 10.99.0.254/24 dev br0\n");
        script += "link set br0 up\n";
        for (number, member) in network.members.iter().enumerate() {
            let pid = member.0.id();
            script += &format!("link add p{number} type veth peer name eth0 netns {pid}\n");
            script += &format!("link set p{number} master br0 up\n");
        }
        network.switch.run("ip", &["-batch", "-"], &script)?;
        for (number, member) in network.members.iter().enumerate() {
            let address = network.address(number);
            let script = format!("link set lo up\nlink set eth0 up\naddr add {address}/24 dev eth0\n");
            member.run("ip", &["-batch", "-"], &script)?;
        }
        Ok(network)
    }

    pub fn address(&self, member: usize) -> IpAddr {
        Ipv4Addr::new(10, 99, 0, u8::try_from(member + 1).unwrap_or(u8::MAX)).into()
    }

    /// A command that runs where a member lives.
    pub fn at(&self, member: usize, program: &str) -> Command {
        self.members[member].enter(program)
    }

    /// Puts the calling thread, and what it starts, where the clients are.
    ///
    /// # Errors
    /// Without root.
    pub fn enter(&self) -> Result<()> {
        let namespace = fs::File::open(self.switch.path())?;
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// From now on that, and nothing else, is wrong.
    pub fn trouble(&self, troubles: &[Trouble]) -> Result<()> {
        self.switch.run("nft", &["-f", "-"], &ruleset(troubles))?;
        for number in 0..self.members.len() {
            let device = format!("p{number}");
            let thin = troubles.iter().find_map(|trouble| match trouble {
                Trouble::Thin { member, kbit } if *member == number => Some(format!("{kbit}kbit")),
                _ => None,
            });
            match thin {
                Some(rate) => {
                    let queue = ["root", "tbf", "rate", &rate, "burst", "4kb", "latency", "300ms"];
                    let arguments = [&["qdisc", "replace", "dev", &device][..], &queue].concat();
                    self.switch.run("tc", &arguments, "")?;
                }
                // There may be none to remove.
                None => drop(self.switch.run("tc", &["qdisc", "del", "dev", &device, "root"], "")),
            }
        }
        Ok(())
    }
}

/// The rules of the switch, in the place of those before.
fn ruleset(troubles: &[Trouble]) -> String {
    let (mut between, mut to_clients, mut from_clients) = (String::new(), String::new(), String::new());
    for trouble in troubles {
        match *trouble {
            Trouble::OneWay { from, to } => between += &format!("iifname \"p{from}\" oifname \"p{to}\" drop\n"),
            Trouble::Cut { member } | Trouble::Alone { member } => {
                between += &format!("iifname \"p{member}\" drop\noifname \"p{member}\" drop\n");
            }
            Trouble::Loss { percent } => between += &format!("numgen random mod 100 < {percent} drop\n"),
            Trouble::Thin { .. } => {}
        }
        if let Trouble::Alone { member } = *trouble {
            to_clients += &format!("iifname \"p{member}\" drop\n");
            from_clients += &format!("oifname \"p{member}\" drop\n");
        }
    }
    let chain = |hook: &str, rules: &str| format!("chain {hook} {{\ntype filter hook {hook} priority 0;\n{rules}}}\n");
    format!(
        "table bridge faults {{}}\ndelete table bridge faults\ntable bridge faults {{\n{}{}{}}}\n",
        chain("forward", &between),
        chain("input", &to_clients),
        chain("output", &from_clients)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_become_rules() {
        let rules = ruleset(&[Trouble::OneWay { from: 0, to: 2 }, Trouble::Alone { member: 1 }]);
        for expected in [
            "chain forward {\ntype filter hook forward priority 0;\niifname \"p0\" oifname \"p2\" drop\n",
            "chain input {\ntype filter hook input priority 0;\niifname \"p1\" drop\n}",
            "chain output {\ntype filter hook output priority 0;\noifname \"p1\" drop\n}",
        ] {
            assert!(rules.contains(expected), "{expected:?} is missing in\n{rules}");
        }
    }

    #[test]
    fn a_member_that_is_cut_off_is_not_reached() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let network = Network::new(3).expect("a network");
        let reaches = |from: usize, to: usize| {
            let (host, listen) = (network.address(to).to_string(), "true".to_owned());
            // Refused at once when the way is open, as nobody listens; silent when it is cut.
            let script = format!("timeout 0.5 bash -c ': < /dev/tcp/{host}/1'; test $? -ne 124 && {listen}");
            let status = network.at(from, "sh").args(["-c", &script]).stderr(Stdio::null()).status();
            status.expect("a shell").success()
        };
        network.trouble(&[]).expect("no trouble");
        assert!(reaches(0, 1) && reaches(1, 2));
        network.trouble(&[Trouble::Cut { member: 1 }]).expect("a cut");
        assert!(!reaches(0, 1) && !reaches(1, 2) && reaches(0, 2));
        network.trouble(&[Trouble::Thin { member: 1, kbit: 500 }]).expect("a thin line");
        assert!(reaches(0, 1));
        network.trouble(&[]).expect("no trouble");
    }
}
