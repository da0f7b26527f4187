//! What goes wrong, and when: a schedule from a seed, and the acts it consists of.

use std::time::Duration;

use anyhow::Result;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::fault::disk::{Behaviour, Bit, Loss};
use crate::fault::network::Trouble;
use crate::members::Members;

/// What is done to members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Ended at once; the page cache stays.
    Kill,
    KillMajority,
    KillAll,
    /// Halted, as a machine without time to give.
    Stop,
    /// Told to end, and started again.
    Restart,
    /// Cut off from the other members; clients reach it.
    Cut,
    /// Cut off from everybody.
    Alone,
    /// One way between two members is cut.
    OneWay,
    /// A part of what members send is lost.
    Loss,
    /// A narrow line with a long queue before it.
    ThinLine,
    DiskStall,
    DiskSlow,
    DiskFull,
    SyncError,
    /// What was not synced is lost, on one member or on all.
    PowerLoss,
    PowerLossAll,
    /// As these, but any part of it may have come to the disk.
    PowerLossTorn,
    PowerLossTornAll,
    /// A bit of a log changes while its member is down.
    BitFlip,
    ClockJump,
}

const PROCESS: &[Fault] = &[Fault::Kill, Fault::KillMajority, Fault::KillAll, Fault::Stop, Fault::Restart];
const NETWORK: &[Fault] = &[Fault::Cut, Fault::Alone, Fault::OneWay, Fault::Loss, Fault::ThinLine];
const DISK: &[Fault] = &[
    Fault::DiskStall,
    Fault::DiskSlow,
    Fault::DiskFull,
    Fault::SyncError,
    Fault::PowerLoss,
    Fault::PowerLossAll,
    Fault::PowerLossTorn,
    Fault::PowerLossTornAll,
    Fault::BitFlip,
    Fault::ClockJump,
];

impl Fault {
    /// Whether its victim may end by itself: what a disk holds that fails is not known.
    pub fn may_end(self) -> bool {
        matches!(self, Self::DiskStall | Self::DiskFull | Self::SyncError | Self::BitFlip | Self::Restart)
    }

    /// Whether a majority is in order all the time, so that writes must go on.
    pub fn leaves_majority(self) -> bool {
        !matches!(self, Self::KillMajority | Self::KillAll | Self::PowerLossAll | Self::PowerLossTornAll | Self::Loss)
    }
}

/// One fault of a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub fault: Fault,
    /// Strikes whoever leads; otherwise this member.
    pub leader: bool,
    pub member: usize,
    /// How long it is quiet before.
    pub pause: Duration,
    pub lasts: Duration,
    /// For whatever else the fault needs to choose.
    pub random: u64,
}

/// The faults of a run: every kind once, in an order from the seed, then again.
pub struct Schedule {
    random: StdRng,
    kinds: Vec<Fault>,
    deck: Vec<Fault>,
    members: usize,
}

impl Schedule {
    /// Faults of networks and disks only where there are such.
    pub fn new(seed: u64, members: usize, network: bool, disks: bool) -> Self {
        let mut kinds = PROCESS.to_vec();
        kinds.extend(NETWORK.iter().filter(|_| network));
        kinds.extend(DISK.iter().filter(|_| disks));
        Self { random: StdRng::seed_from_u64(seed), kinds, deck: Vec::new(), members }
    }
}

impl Iterator for Schedule {
    type Item = Step;

    /// Never ends.
    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.kinds);
            self.deck.shuffle(&mut self.random);
        }
        let random = &mut self.random;
        Some(Step {
            fault: self.deck.pop()?,
            leader: random.random_bool(0.6),
            member: random.random_range(0..self.members),
            pause: Duration::from_millis(random.random_range(300..1_500)),
            lasts: Duration::from_millis(random.random_range(300..2_500)),
            random: random.random(),
        })
    }
}

/// What must be done beside mending once a fault is over.
#[derive(Debug)]
pub enum After {
    Nothing,
    /// The victim had to end by itself.
    MustHaveEnded,
    /// The bit is restored if the victim refuses to start, as an operator would bring
    /// back what it had.
    Bit(Bit),
}

/// Does to `victim` what the step says.
pub fn begin(step: &Step, victim: usize, members: &mut Members<'_>) -> Result<After> {
    let behave = |members: &Members<'_>, behaviour| members.disk(victim)?.behave(behaviour);
    let healthy = Behaviour::default();
    let another = (victim + 1 + step.random as usize % (members.count() - 1)) % members.count();
    match step.fault {
        Fault::Kill => members.kill(victim)?,
        Fault::KillMajority => {
            for offset in 0..=members.count() / 2 {
                members.kill((victim + offset) % members.count())?;
            }
        }
        Fault::KillAll => kill_all(members)?,
        Fault::Stop => members.stop(victim)?,
        Fault::Restart => members.terminate(victim)?,
        Fault::Cut => members.trouble(&[Trouble::Cut { member: victim }])?,
        Fault::Alone => members.trouble(&[Trouble::Alone { member: victim }])?,
        Fault::OneWay if step.random.is_multiple_of(2) => {
            members.trouble(&[Trouble::OneWay { from: victim, to: another }])?;
        }
        Fault::OneWay => members.trouble(&[Trouble::OneWay { from: another, to: victim }])?,
        Fault::Loss => members.trouble(&[Trouble::Loss { percent: 10 + (step.random % 30) as u32 }])?,
        Fault::ThinLine => {
            members.trouble(&[Trouble::Thin { member: victim, kbit: 200 + (step.random % 800) as u32 }])?;
        }
        Fault::DiskStall => behave(members, Behaviour { stalled: true, ..healthy })?,
        Fault::DiskSlow => {
            let slow = Duration::from_millis(20 + step.random % 200);
            behave(members, Behaviour { slow, ..healthy })?;
        }
        Fault::DiskFull => behave(members, Behaviour { full: true, ..healthy })?,
        Fault::SyncError => {
            behave(members, Behaviour { sync_fails: true, ..healthy })?;
            return Ok(After::MustHaveEnded);
        }
        Fault::PowerLoss | Fault::PowerLossTorn => {
            members.kill(victim)?;
            members.disk(victim)?.lose(loss(step, victim))?;
        }
        Fault::PowerLossAll | Fault::PowerLossTornAll => {
            kill_all(members)?;
            for member in 0..members.count() {
                members.disk(member)?.lose(loss(step, member))?;
            }
        }
        Fault::BitFlip => {
            members.kill(victim)?;
            let bit = Bit::flip_in_log(members.data(victim), step.random)?;
            members.launch(victim)?;
            return Ok(After::Bit(bit));
        }
        Fault::ClockJump => {
            let day = 86_400_000;
            let clock_ahead_millis = (step.random % (2 * day)) as i64 - day as i64;
            behave(members, Behaviour { clock_ahead_millis, ..healthy })?;
        }
    }
    Ok(After::Nothing)
}

fn loss(step: &Step, member: usize) -> Loss {
    match step.fault {
        Fault::PowerLossTorn | Fault::PowerLossTornAll => Loss::Torn { seed: step.random.wrapping_add(member as u64) },
        _ => Loss::Unsynced,
    }
}

/// In one go, so that nobody leads the others on.
fn kill_all(members: &mut Members<'_>) -> Result<()> {
    for member in 0..members.count() {
        members.stop(member)?;
    }
    (0..members.count()).try_for_each(|member| members.kill(member))
}

/// Restores the bit if its member has refused to start; returns whether it had to.
pub fn restore(victim: usize, members: &mut Members<'_>, bit: &Bit) -> Result<bool> {
    let refused = members.ended(victim)?.is_some();
    if refused {
        bit.restore()?;
    }
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_schedule_of_every_kind() {
        let steps = |seed| Schedule::new(seed, 3, true, true).take(40).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        let mut kinds: Vec<Fault> = steps(7)[..20].iter().map(|step| step.fault).collect();
        kinds.sort_unstable();
        kinds.dedup();
        assert_eq!(kinds.len(), 20);
        assert!(Schedule::new(7, 3, false, false).take(40).all(|step| PROCESS.contains(&step.fault)));
    }
}
