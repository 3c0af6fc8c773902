// Events are enough: every series is whole, and every record can be rebuilt from them alone.
import { expect } from "chai";
import {
  Freeze, Grant, PURPOSE, Refusal, RESULT, Role, State, Status, anchor, ask, digest, encode, ethers, given, govern, grant,
  jobIn, judged, loadFixture, passDeadline, post, ready, registerBundle, report, setStatus,
} from "./network.js";

const KEYS = ethers.concat([ethers.toBeHex((0x80n << 376n) | 1n, 48), ethers.toBeHex((0x80n << 376n) | 2n, 48)]);

/** A network in which every kind of event happened. */
async function busy() {
  const n = await ready();
  await n.keys.connect(n.south.account).registerKeyDomain(digest("key south"), digest("bfv-4096-54"), digest("p"));
  await n.keys.connect(n.south.account).markCompromised(digest("key south"));
  await govern(n, n.keys, "allowParameters", [digest("bgv"), 256]);
  await govern(n, n.keys, "disallowParameters", [digest("bgv")]);
  await n.participants.connect(n.south.node).setEndpoint("/dns4/south/tcp/4001");
  await govern(n, n.participants, "setRoles", [n.auditor.id, Role.VERIFIER]);
  const wide = await grant(n, { uses: 20, minCohort: 0 });
  const used = { grantId: wide, rhoMicro: 100 };
  let nonce = 100;
  for (const state of ["Posted", "Claimed", "Committed", "Revealing", "Verified", "Opened", "Released"]) {
    await jobIn(n, state, { ...used, nonce: ++nonce });
  }
  await judged(n, [RESULT, RESULT, digest("other")], { ...used, nonce: ++nonce });
  await report(n, await judged(n, [digest("other"), digest("other"), RESULT], { ...used, nonce: ++nonce }));
  const expired = await jobIn(n, "Posted", { ...used, nonce: ++nonce });
  await passDeadline(n, expired);
  await n.jobs.connect(n.auditor.node).expireJob(...given(n, expired));
  const refused = await jobIn(n, "Verified", { ...used, nonce: ++nonce });
  await n.jobs.connect(n.north.node).refuseRelease(...given(n, refused), Refusal.PossessionUnproven);
  const stale = await jobIn(n, "Verified", { ...used, nonce: ++nonce });
  await anchor(n, 2, 100);
  await n.jobs.connect(n.north.node).openRelease(...given(n, stale));
  await post(n, { nonce: ++nonce });
  await n.lineage.connect(n.north.account).setPolicy(n.bundle, digest("policy 2"));
  const second = await registerBundle(n, "second", { parents: [n.bundle] });
  await govern(n, n.lineage, "setFrozen", [second, true]);
  await n.rights.connect(n.north.account).denyUsage(await ask(n), Refusal.CohortTooSmall);
  await n.rights.connect(n.north.account).revokeUsage(await grant(n));
  await grant(n, {}, second);
  await n.rights.connect(n.north.account).revokeArtifact(second);
  await ask(n, {}, second);
  await n.rights.connect(n.north.account).revokeGrantee(n.university.id);
  await grant(n);
  await n.council.connect(n.south.account).propose(n.jobs.target, "0x12345678");
  await n.council.connect(n.north.account).vote(await n.council.proposalCount(), false);
  await govern(n, n.reputation, "forgive", [n.compute.id]);
  await setStatus(n, n.south, Status.Suspended);
  await govern(n, n.jobs, "setQuorum", [3]);
  await govern(n, n.council, "setParameters", [60, 6000]);
  await govern(n, n.validators, "replace", [KEYS, [1, 2]]);
  await setStatus(n, n.auditor, Status.Removed);
  return n;
}

async function eventsOf(n) {
  const addresses = Object.fromEntries(Object.values(n.contracts).map((c) => [c.target, c]));
  const logs = await ethers.provider.getLogs({ fromBlock: 0, toBlock: "latest", address: Object.keys(addresses) });
  const times = new Map();
  const events = [];
  for (const log of logs) {
    if (!times.has(log.blockNumber)) {
      times.set(log.blockNumber, BigInt((await ethers.provider.getBlock(log.blockNumber)).timestamp));
    }
    const parsed = addresses[log.address].interface.parseLog(log);
    if (!parsed) continue;
    events.push({
      ...parsed, args: parsed.args, name: parsed.name, at: times.get(log.blockNumber), block: BigInt(log.blockNumber),
      contract: addresses[log.address],
    });
  }
  return events;
}

const inSeries = (event) => event.fragment.inputs.at(-1).name === "head";
const keyOf = ({ name, args }) => (name === "ConsentEpochAnchored" ? [args[0], args[1]] : [args[0]]);
const seriesOf = (event) => keyOf(event).join(" ");
const BEFORE_THE_FIRST = Object.freeze({ length: 0n, head: ethers.ZeroHash });

/** Where the contract says that the event's series ends. */
async function toldEnd(event) {
  const [length, head] = await event.contract.seriesHead(...keyOf(event));
  return { length, head };
}

/** Follows every series; throws on the first event whose number or hash does not follow from the one before. */
function follow(events) {
  const ends = new Map();
  for (const event of events.filter(inSeries)) {
    const { length, head } = ends.get(seriesOf(event)) ?? BEFORE_THE_FIRST;
    const covered = event.fragment.inputs.slice(0, -2);
    const payload = encode(covered, covered.map((_, index) => event.args[index]));
    const sequence = length + 1n;
    const next = ethers.keccak256(
      encode(["bytes32", "uint64", "bytes32", "bytes32"], [head, sequence, event.topic, ethers.keccak256(payload)]),
    );
    if (event.args.sequence !== sequence || event.args.head !== next) throw new Error(`gap at ${event.name}`);
    ends.set(seriesOf(event), { length: sequence, head: next });
  }
  return ends;
}

// Structs become objects, lists arrays; of nested values only the grant's terms and the job's request are structs.
const STRUCTS = new Set(["terms", "request"]);
function object(result) {
  const convert = ([name, value]) => {
    if (!(value instanceof ethers.Result)) return [name, value];
    return [name, STRUCTS.has(name) ? object(value) : value.toArray()];
  };
  return Object.fromEntries(Object.entries(result.toObject()).map(convert));
}

function rebuild(events) {
  const state = {
    participants: {}, keys: {}, allowed: {}, artifacts: {}, consents: {}, grants: {}, accounts: {}, committed: {},
    jobs: {}, proposals: {}, timings: null, quorum: null, votingPeriod: null, quorumBps: null, validators: null, points: {},
    rule: null,
  };
  const { participants, keys, artifacts, grants, jobs, accounts } = state;
  const revoke = (which) => {
    for (const found of Object.values(grants)) {
      if (found.status === Grant.Granted && which(found)) found.status = Grant.Revoked;
    }
  };
  const move = (jobId, to, fields = {}) => Object.assign(jobs[jobId], { state: to, deadline: 0n }, fields);
  const requests = {};
  const emptyJob = (a, block, fields) => {
    requests[a.jobId] = a.request;
    return {
      state: State.Posted, refusal: 0n, replicas: 0n, asked: 0n, commits: 0n, agreeing: 0n, dissenting: 0n, turns: 0n,
      deadline: 0n, postedIn: block, ...fields,
    };
  };
  const fold = {
    ParticipantAdmitted: (a) => (participants[a.id] = object(a.participant)),
    ParticipantStatusChanged: (a) => (participants[a.id].status = a.status),
    ParticipantRolesChanged: (a) => (participants[a.id].roles = a.roles),
    ParticipantEndpointChanged: (a) => (participants[a.id].endpoint = a.endpoint),
    ParametersAllowed: (a) => (state.allowed[a.parametersId] = true),
    ParametersDisallowed: (a) => (state.allowed[a.parametersId] = false),
    KeyDomainRegistered: (a, at) => (keys[a.keyId] = {
      custodian: a.custodian, parametersId: a.parametersId, publicDigest: a.publicDigest, epoch: a.epoch, registeredAt: at, status: 1n,
    }),
    KeyStatusChanged: (a) => (keys[a.keyId].status = a.status),
    BundleRegistered: (a, at) => {
      const { parents, ...registered } = object(a.registration);
      artifacts[a.artifactId] = {
        ...registered, kind: 1n, steward: a.steward, policyVersion: 1n, registeredAt: at, frozen: Freeze.None,
      };
    },
    PolicyChanged: (a) => {
      Object.assign(artifacts[a.artifactId], { policyDigest: a.policyDigest, policyVersion: a.policyVersion });
    },
    ArtifactFrozen: (a) => (artifacts[a.artifactId].frozen = a.frozen),
    ConsentEpochAnchored: (a, at) => (state.consents[`${a.steward} ${a.scope}`] = {
      epoch: a.epoch, anchoredAt: at, cohortFloor: a.cohortFloor, consentRoot: a.consentRoot,
      statusDigest: a.statusDigest,
    }),
    UsageRequested: (a) => (grants[a.grantId] = {
      artifactId: a.artifactId, grantee: a.grantee, purpose: a.purpose, status: Grant.Requested, used: 0n,
      terms: {
        kernels: [], uses: 0n, expiresAt: 0n, rhoMicro: 0n, minCohort: 0n, level: 0n, replicas: 0n, rowLevel: false,
      },
    }),
    UsageGranted: (a) => Object.assign(grants[a.grantId], { status: Grant.Granted, terms: object(a.terms) }),
    UsageDenied: (a) => (grants[a.grantId].status = Grant.Denied),
    UsageRevoked: (a) => (grants[a.grantId].status = Grant.Revoked),
    ArtifactUsageRevoked: (a) => revoke((found) => found.artifactId === a.artifactId),
    GranteeUsageRevoked: (a) =>
      revoke((found) => found.grantee === a.grantee && artifacts[found.artifactId].steward === a.steward),
    BudgetSet: (a) => {
      accounts[a.artifactId] = { reserved: 0n, spent: 0n, ...accounts[a.artifactId], total: a.totalRhoMicro };
    },
    JobPosted: (a, at, block) => {
      const { artifactId, grantId, rhoMicro } = a.request;
      jobs[a.jobId] = emptyJob(a, block, { replicas: a.replicas, asked: a.asked, deadline: a.deadline });
      accounts[artifactId].reserved += rhoMicro;
      state.committed[grantId] = (state.committed[grantId] ?? 0n) + rhoMicro;
      grants[grantId].used += 1n;
    },
    JobDenied: (a, at, block) => {
      jobs[a.jobId] = emptyJob(a, block, { state: State.Denied, refusal: a.reason });
    },
    JobClaimed: (a) => move(a.jobId, State.Claimed, { turns: jobs[a.jobId].turns + 1n, deadline: a.deadline }),
    ResultCommitted: (a) => move(a.jobId, State.Committed, { asked: a.asked, deadline: a.deadline }),
    VerdictCommitted: (a) => (jobs[a.jobId].commits += 1n),
    CommitsClosed: (a) => move(a.jobId, State.Revealing, { commits: a.commits, deadline: a.deadline }),
    VerdictRevealed: (a) => (jobs[a.jobId][a.agrees ? "agreeing" : "dissenting"] += 1n),
    JobDisputed: (a) => move(a.jobId, State.Disputed, { deadline: a.deadline }),
    JobVerified: (a) => move(a.jobId, State.Verified, { deadline: a.deadline }),
    ReleaseOpened: (a) => {
      const { artifactId, rhoMicro } = requests[a.jobId];
      move(a.jobId, State.Opened, { deadline: a.deadline });
      accounts[artifactId].reserved -= rhoMicro;
      accounts[artifactId].spent += rhoMicro;
    },
    JobReleased: (a) => move(a.jobId, State.Released),
    JobEnded: (a) => {
      const { artifactId, grantId, rhoMicro } = requests[a.jobId];
      move(a.jobId, a.state, { refusal: a.reason });
      if (a.from === State.Opened) return;
      accounts[artifactId].reserved -= rhoMicro;
      state.committed[grantId] -= rhoMicro;
      grants[grantId].used -= 1n;
    },
    TimingsChanged: (a) => (state.timings = object(a.timings)),
    ValidatorSetChanged: (a) => {
      state.validators = { version: a.sequence, publicKeys: a.publicKeys, weights: [...a.weights] };
    },
    FaultRecorded: (a) => (state.points[a.organisation] = a.points),
    FaultsForgiven: (a) => (state.points[a.organisation] = 0n),
    RuleChanged: (a) => (state.rule = object(a.rule)),
    QuorumChanged: (a) => (state.quorum = a.replicas),
    CouncilParametersChanged: (a) => {
      Object.assign(state, { votingPeriod: a.votingPeriod, quorumBps: a.quorumBps });
    },
    ProposalMade: (a) => (state.proposals[a.proposalId] = { deadline: a.deadline, executed: false, supporters: [] }),
    VoteCast: (a) => a.support && state.proposals[a.proposalId].supporters.push(a.voter),
    ProposalExecuted: (a) => (state.proposals[a.proposalId].executed = true),
    AuthorityUpdated: () => {},
  };
  const seen = new Set();
  for (const { name, args, at, block } of events) {
    fold[name](args, at, block);
    seen.add(name);
  }
  expect(Object.keys(fold).filter((name) => !seen.has(name))).to.deep.equal([]);
  return state;
}

describe("Events", () => {
  it("chain every series by number and hash", async () => {
    const n = await loadFixture(busy);
    const events = await eventsOf(n);
    const ends = follow(events);
    expect(ends.size).to.be.greaterThan(20);
  });

  it("end every series where the contract says that it ends", async () => {
    const n = await loadFixture(busy);
    const events = (await eventsOf(n)).filter(inSeries);
    const ends = follow(events);
    const anyOf = new Map(events.map((event) => [seriesOf(event), event]));
    const contracts = new Set();
    for (const [series, event] of anyOf) {
      expect(await toldEnd(event), event.name).to.deep.equal(ends.get(series));
      contracts.add(event.contract);
    }
    expect(contracts).to.deep.equal(new Set([n.lineage, n.consents, n.rights, n.jobs, n.reputation, n.validators]));
    const unknown = digest("nothing has this id");
    for (const contract of [n.lineage, n.rights, n.jobs, n.validators, n.reputation]) {
      expect(await contract.seriesHead(unknown)).to.deep.equal([0n, ethers.ZeroHash]);
    }
    for (const key of [[n.south.id, PURPOSE], [n.north.id, unknown]]) {
      expect(await n.consents.seriesHead(...key)).to.deep.equal([0n, ethers.ZeroHash]);
    }
  });

  it("count each series on its own: an event moves one end and no other", async () => {
    const n = await loadFixture(ready);
    const ends = async () => [
      [...(await n.lineage.seriesHead(n.bundle))], [...(await n.consents.seriesHead(n.north.id, PURPOSE))],
      [...(await n.rights.seriesHead(n.grantId))],
    ];
    const moves = [
      () => n.lineage.connect(n.north.account).setFrozen(n.bundle, true),
      () => anchor(n, 2, 50),
      () => n.rights.connect(n.north.account).revokeUsage(n.grantId),
    ];
    for (const [moved, move] of moves.entries()) {
      const before = await ends();
      await move();
      for (const [index, [length, head]] of (await ends()).entries()) {
        expect(length - before[index][0]).to.equal(index === moved ? 1n : 0n);
        expect(head === before[index][1]).to.equal(index !== moved);
      }
    }
  });

  it("show when any one event of a series is missing, altered or out of order", async () => {
    const n = await loadFixture(busy);
    const events = (await eventsOf(n)).filter(inSeries);
    for (let index = 0; index < events.length; index += 1) {
      const others = events.filter((_, at) => at !== index);
      const series = seriesOf(events[index]);
      const lastOfSeries = !others.slice(index).some((event) => seriesOf(event) === series);
      if (lastOfSeries) {
        const found = follow(others).get(series) ?? BEFORE_THE_FIRST;
        const told = await toldEnd(events[index]);
        expect(told.length - found.length, events[index].name).to.equal(1n);
        expect(told.head, events[index].name).to.not.equal(found.head);
      } else {
        expect(() => follow(others), events[index].name).to.throw("gap");
      }
    }
    const job = events.find(({ name }) => name === "JobPosted");
    const altered = events.map((event) => (event === job ? { ...event, topic: digest("other") } : event));
    expect(() => follow(altered)).to.throw("gap at JobPosted");
  });

  it("rebuild every record as the contracts hold it", async () => {
    const n = await loadFixture(busy);
    const state = rebuild(await eventsOf(n));
    const compare = async (records, view) => {
      expect(Object.keys(records).length).to.be.greaterThan(0);
      for (const [id, record] of Object.entries(records)) expect(record, id).to.deep.equal(object(await view(id)));
    };
    await compare(state.participants, (id) => n.participants.participant(id));
    await compare(state.keys, (id) => n.keys.keyDomain(id));
    await compare(state.artifacts, (id) => n.lineage.artifact(id));
    await compare(state.consents, (id) => n.consents.currentEpoch(...id.split(" ")));
    await compare(state.grants, (id) => n.rights.grant(id));
    await compare(state.accounts, (id) => n.budgets.account(id));
    await compare(state.jobs, (id) => n.jobs.progress(id));
    for (const [id, rho] of Object.entries(state.committed)) expect(await n.rights.committedUnder(id)).to.equal(rho);
    for (const [id, allowed] of Object.entries(state.allowed)) expect(await n.keys.isAllowed(id)).to.equal(allowed);
    expect(Object.keys(state.participants)).to.deep.equal([...(await n.participants.organisations())]);
    const active = Object.values(state.participants).filter(({ status }) => status === Status.Active);
    expect(await n.participants.activeCount()).to.equal(BigInt(active.length));
    for (const role of Object.values(Role)) {
      const holders = active.filter(({ roles }) => roles & BigInt(role));
      expect(await n.participants.activeCountWithRole(role)).to.equal(BigInt(holders.length));
    }
    expect(state.timings).to.deep.equal(object(await n.jobs.timings()));
    expect(state.quorum).to.equal(await n.jobs.quorum());
    expect(state.rule).to.deep.equal(object(await n.reputation.rule()));
    expect(Object.values(state.points)).to.include(0n);
    for (const [id, points] of Object.entries(state.points)) expect(await n.reputation.pointsOf(id)).to.equal(points);
    expect(state.validators).to.deep.equal(object(await n.validators.current()));
    expect([state.votingPeriod, state.quorumBps]).to.deep.equal([
      await n.council.votingPeriod(), await n.council.quorumBps(),
    ]);
    expect(await n.council.proposalCount()).to.equal(BigInt(Object.keys(state.proposals).length));
    const isActive = (id) => state.participants[id].status === Status.Active;
    const needed = (BigInt(active.length) * state.quorumBps) / 10_000n + 1n;
    for (const [id, { executed, supporters }] of Object.entries(state.proposals)) {
      expect(await n.council.tally(id)).to.deep.equal([BigInt(supporters.filter(isActive).length), needed]);
      expect((await n.council.proposalStatus(id)) === 2n).to.equal(executed);
    }
  });

  it("Chain linkability: index at most three fields, and carry neither subjects nor free text beyond members' own", async () => {
    const n = await loadFixture(ready);
    const allowedText = new Set([
      "ParticipantAdmitted", "ParticipantEndpointChanged", "ProposalMade", "ValidatorSetChanged",
    ]);
    for (const contract of Object.values(n.contracts)) {
      for (const event of contract.interface.fragments.filter(({ type }) => type === "event")) {
        expect(event.inputs.filter(({ indexed }) => indexed).length, event.name).to.be.at.most(3);
        const dynamic = event.inputs.flatMap((i) => (i.baseType === "tuple" ? i.components : [i]))
          .some(({ type }) => type === "string" || type === "bytes");
        expect(dynamic && !allowedText.has(event.name), event.name).to.equal(false);
        const named = event.inputs.map(({ name }) => name.toLowerCase()).join(" ");
        expect(named, event.name).to.not.match(/subject|template|person|pseudonym/);
      }
    }
  });
});
