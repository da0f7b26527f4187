//! Members of a store as processes under test: `quorate store`, each with a disk of its own
//! to lose, on a network of their own or on loopback.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};
use quorate_transport::loopback::free_address;

use crate::fault::disk::{self, Behaviour, Disk};
use crate::fault::network::{Network, Trouble};
use crate::fault::process;

/// How much of a log is shown when a member ended by itself.
const TAIL_LINES: usize = 12;

/// What to start.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `quorate` binary.
    pub binary: PathBuf,
    /// Data and logs; absolute.
    pub folder: PathBuf,
    pub members: usize,
    /// Load the shim for faults of disks and clocks.
    pub disks: bool,
}

/// The members; killed with this value, and with the thread that started them.
pub struct Members<'a> {
    options: Options,
    network: Option<&'a Network>,
    places: Vec<Place>,
}

struct Place {
    client: SocketAddr,
    peer: SocketAddr,
    data: PathBuf,
    log: PathBuf,
    disk: Option<Disk>,
    process: Option<Child>,
    stopped: bool,
}

impl<'a> Members<'a> {
    /// Starts all members; none of them needs to answer yet.
    pub fn start(options: Options, network: Option<&'a Network>) -> Result<Self> {
        fs::create_dir_all(&options.folder).context("cannot make the folder of a run")?;
        let faults = options.folder.join("faults");
        if options.disks {
            disk::install(&faults)?;
        }
        let mut places = Vec::new();
        for number in 0..options.members {
            let data = options.folder.join(format!("m{number}"));
            let disk = options.disks.then(|| Disk::at(&faults, &format!("m{number}"), &data));
            if let Some(disk) = &disk {
                disk.prepare()?;
            }
            let address = |port| match network {
                Some(network) => SocketAddr::new(network.address(number), port),
                None => free_address(),
            };
            places.push(Place {
                client: address(2379),
                peer: address(2380),
                data,
                log: options.folder.join(format!("m{number}.log")),
                disk,
                process: None,
                stopped: false,
            });
        }
        let mut members = Self { options, network, places };
        (0..members.count()).try_for_each(|number| members.launch(number))?;
        Ok(members)
    }

    pub fn count(&self) -> usize {
        self.places.len()
    }

    pub fn client(&self, member: usize) -> SocketAddr {
        self.places[member].client
    }

    pub fn data(&self, member: usize) -> &Path {
        &self.places[member].data
    }

    /// Starts a member that does not run.
    pub fn launch(&mut self, member: usize) -> Result<()> {
        let cluster: Vec<String> =
            self.places.iter().enumerate().map(|(number, place)| format!("m{number}=http://{}", place.peer)).collect();
        let mut command = match self.network {
            Some(network) => network.at(member, "setpriv"),
            None => Command::new("setpriv"),
        };
        let place = &mut self.places[member];
        command.args(["--pdeathsig", "KILL", "env"]);
        // Only the member shall be on this disk, and not what starts it.
        for (name, value) in place.disk.iter().flat_map(Disk::environment) {
            command.arg(format!("{name}={}", value.display()));
        }
        let (client, peer) = (format!("http://{}", place.client), format!("http://{}", place.peer));
        let log = File::options().create(true).append(true).open(&place.log).context("cannot open a log")?;
        command
            .arg(&self.options.binary)
            .args(["store", "--name", &format!("m{member}"), "--initial-cluster", &cluster.join(",")])
            .args(["--initial-cluster-token", "chaos", "--watch-progress-notify-interval", "500ms"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(&place.data)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        place.process = Some(command.spawn().context("cannot start a member; is util-linux installed?")?);
        place.stopped = false;
        Ok(())
    }

    /// Ends a member at once, and waits for it.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut process) = self.places[member].process.take() {
            process.kill().context("cannot kill a member")?;
            process.wait().context("a killed member does not end")?;
        }
        Ok(())
    }

    /// Asks a member to end.
    pub fn terminate(&mut self, member: usize) -> Result<()> {
        self.places[member].process.as_ref().map_or(Ok(()), |child| process::terminate(child.id()))
    }

    /// Halts a member.
    pub fn stop(&mut self, member: usize) -> Result<()> {
        let place = &mut self.places[member];
        place.stopped = true;
        place.process.as_ref().map_or(Ok(()), |child| process::stop(child.id()))
    }

    /// How a member ended, if it did; it can be launched again then.
    pub fn ended(&mut self, member: usize) -> Result<Option<ExitStatus>> {
        let place = &mut self.places[member];
        let status = match &mut place.process {
            Some(process) => process.try_wait()?,
            None => None,
        };
        if status.is_some() {
            place.process = None;
        }
        Ok(status)
    }

    pub fn runs(&self, member: usize) -> bool {
        self.places[member].process.is_some()
    }

    pub fn disk(&self, member: usize) -> Result<&Disk> {
        self.places[member].disk.as_ref().context("the members have no disks to lose")
    }

    pub fn trouble(&self, troubles: &[Trouble]) -> Result<()> {
        self.network.context("the members are on loopback")?.trouble(troubles)
    }

    /// Undoes all that was done to networks, disks, clocks and processes, and starts whoever
    /// has ended.
    pub fn mend(&mut self) -> Result<()> {
        if let Some(network) = self.network {
            network.trouble(&[])?;
        }
        for member in 0..self.count() {
            let place = &mut self.places[member];
            if let Some(disk) = &place.disk {
                disk.behave(Behaviour::default())?;
            }
            if std::mem::take(&mut place.stopped)
                && let Some(process) = &place.process
            {
                process::resume(process.id())?;
            }
            self.ended(member)?;
            if !self.runs(member) {
                self.launch(member)?;
            }
        }
        Ok(())
    }

    /// The last lines that a member logged.
    pub fn says(&self, member: usize) -> String {
        let text = fs::read_to_string(&self.places[member].log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Members<'_> {
    fn drop(&mut self) {
        for member in 0..self.count() {
            // A run that failed leaves no process behind either.
            let _ = self.kill(member);
        }
    }
}
