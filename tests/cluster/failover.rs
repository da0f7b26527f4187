//! Masters die; nothing acknowledged is lost and writes are back within a second.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quorate_chaos::fault::process;
use quorate_chaos::report::Distribution;
use quorate_chaos::workload::objects::{Acknowledged, Objects};
use quorate_tests::{TestCluster, eventually, report};

use crate::web;

/// How often the leading master is killed.
const KILLS: usize = 10;

/// The promise to users: a write through the endpoint succeeds within that.
const WRITE_BUDGET: Duration = Duration::from_secs(1);

/// How long a retried write may take in all before the test gives up on it.
const WRITE_PATIENCE: Duration = Duration::from_secs(15);

/// How long a pod may take to run after the leader of its controllers was killed.
const POD_PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn writes_and_pods_survive_the_loss_of_any_leader() -> Result<()> {
    let mut test = TestCluster::start(3, 1)?;
    let kubectl = test.kubectl();
    web::wait_for_node(&kubectl)?;
    kubectl.run(&["apply", "-f", &web::manifest()?])?;
    let objects = Objects::connect(&test.cluster.kubeconfig()).await?;
    let mut written: Vec<Acknowledged> = Vec::new();
    let (mut writes, mut pods) = (Distribution::default(), Distribution::default());
    written.push(objects.create("before", "0", Instant::now() + WRITE_PATIENCE).await?);
    for round in 1..=KILLS {
        let status = everybody_caught_up(&mut test)?;
        let leader = status.leader.context("a leader")?;
        let victim = status.members.iter().find(|member| member.name == leader).context("the leader is a member")?;
        process::kill(victim.pid.context("the leader's pid")?)?;
        let killed = Instant::now();
        written.push(objects.create(&format!("kill-{round}"), &round.to_string(), killed + WRITE_PATIENCE).await?);
        let write = killed.elapsed();
        writes.add(write);
        // One pod more each time: only a controller, a scheduler and a node that act bring it.
        let replicas = round + 2;
        kubectl.run(&["scale", "deployment/web", &format!("--replicas={replicas}")])?;
        eventually("the new pod to run", POD_PATIENCE, || {
            Ok((web::running(&kubectl)?.len() == replicas).then_some(()))
        })?;
        pods.add(killed.elapsed());
        report(&format!(
            "kill {round}: {leader} of term {} lost, a write after {:.3} s, the new pod running after {:.1} s",
            status.term,
            write.as_secs_f64(),
            killed.elapsed().as_secs_f64()
        ));
    }
    report(&format!("kill -9 of the leading master to the next acknowledged write: {writes}"));
    report(&format!("kill -9 of the leading master to the new pod Running:         {pods}"));
    for object in &written {
        let found = objects.get(&object.name, Instant::now() + WRITE_PATIENCE).await?;
        assert_eq!(&found, object, "what was acknowledged is there, at its revision");
    }
    ensure!(writes.max().context("at least one kill")? <= WRITE_BUDGET, "writes came back too late: {writes}");
    everybody_caught_up(&mut test)?;
    test.cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_objects_survive_the_loss_of_all_masters() -> Result<()> {
    let mut test = TestCluster::start(3, 0)?;
    let objects = Objects::connect(&test.cluster.kubeconfig()).await?;
    let mut written = Vec::new();
    for number in 0..50 {
        let name = format!("object-{number}");
        written.push(objects.create(&name, &format!("value-{number}"), Instant::now() + WRITE_PATIENCE).await?);
    }
    test.cluster.power_off()?;
    test.cluster.launch()?;
    let objects = Objects::connect(&test.cluster.kubeconfig()).await?;
    for object in &written {
        let found = objects.get(&object.name, Instant::now() + WRITE_PATIENCE).await?;
        assert_eq!(&found, object, "what was acknowledged is there, at its revision");
    }
    let after = objects.create("after", "x", Instant::now() + WRITE_PATIENCE).await?;
    for object in &written {
        ensure!(revision(&after)? > revision(object)?, "revisions only move forward");
    }
    everybody_caught_up(&mut test)?;
    test.cluster.stop()
}

fn revision(object: &Acknowledged) -> Result<u64> {
    object.resource_version.parse().context("a revision is a number")
}

/// All members answer, one leads, and nobody lags.
fn everybody_caught_up(test: &mut TestCluster) -> Result<quorate_chaos::cluster::Status> {
    let cluster = &test.cluster;
    eventually("every member to have caught up", Duration::from_secs(30), || {
        let status = cluster.status()?;
        let caught_up = status
            .members
            .iter()
            .all(|member| member.role != "silent" && member.pid.is_some() && member.lag <= Some(3));
        Ok((status.leader.is_some() && caught_up).then_some(status))
    })
}
