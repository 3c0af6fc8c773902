// A deployed network of five members, and short ways to take its jobs from state to state. Holds no test.
import { expect } from "chai";
import { network } from "hardhat";

export const { ethers, networkHelpers } = await network.create();
export const { loadFixture, time } = networkHelpers;

const named = (...names) => Object.freeze(Object.fromEntries(names.map((name, index) => [name, BigInt(index)])));

export const Status = named("None", "Active", "Suspended", "Removed");
export const KeyStatus = named("None", "Active", "Retired", "Compromised");
export const Kind = named("None", "Bundle", "Result", "Release");
export const Freeze = named("None", "BySteward", "ByCouncil");
export const Grant = named("None", "Requested", "Granted", "Denied", "Revoked");
export const Proposal = named("None", "Open", "Executed", "Expired");
export const Level = named("None", "Claimed", "Sampled", "Algebraic", "Replicated");
export const State = named(
  "None", "Posted", "Denied", "Claimed", "Committed", "Revealing", "Disputed",
  "Verified", "Opened", "Released", "Refuted", "Expired", "Refused", "StaleConsent",
);
export const Refusal = named(
  "None", "GrantUnknown", "GrantNotOpen", "GrantRevoked", "GrantExpired", "UsesExhausted", "GranteeMismatch",
  "ArtifactMismatch", "PurposeNotGranted", "KernelNotGranted", "RowLevelNotGranted", "ArtifactFrozen",
  "RetentionPassed", "StewardNotActive", "RequesterNotActive", "KeyDomainNotActive", "PolicyVersionStale",
  "ConsentEpochStale", "CohortTooSmall", "BudgetExceeded", "NotEnoughVerifiers", "LevelTooLow",
  "PossessionUnproven", "ResultInvalid",
);
export const Role = Object.freeze({ STEWARD: 1, CUSTODIAN: 2, PARTNER: 4, COMPUTE: 8, VERIFIER: 16, AUDITOR: 32 });

export const ZERO = ethers.ZeroHash;
export const label = (text) => ethers.encodeBytes32String(text);
export const digest = (text) => ethers.sha256(ethers.toUtf8Bytes(text));
export const encode = (types, values) => ethers.AbiCoder.defaultAbiCoder().encode(types, values);

export const KERNEL = digest("kernel sum");
export const PURPOSE = label("occupancy");
export const PARAMETERS = digest("bfv-4096-54");
export const TIMINGS = { claim: 100, compute: 200, commit: 300, reveal: 400, dispute: 500, release: 600 };
export const RULE = {
  fadeSeconds: 3600, limit: 30, refutedResult: 15, wrongVerdict: 12, unrevealedVerdict: 3, lapsedClaim: 1,
};
export const QUORUM = 2;
export const VOTING_PERIOD = 3600;
export const QUORUM_BPS = 5000;
export const DAY = 86400;
export const CHAIN = digest("blockchain id");
export const FEES = { allowance: 10n ** 18n, period: 86400n };

const MEMBERS = {
  north: ["clinic-north", Role.STEWARD | Role.CUSTODIAN | Role.VERIFIER],
  south: ["clinic-south", Role.STEWARD | Role.CUSTODIAN | Role.VERIFIER],
  university: ["university", Role.PARTNER],
  compute: ["compute-1", Role.COMPUTE],
  auditor: ["auditor", Role.VERIFIER | Role.AUDITOR],
};

export function participantOf(member, overrides = {}) {
  return {
    id: member.id,
    account: member.account.address,
    nodeAccount: member.node.address,
    roles: member.roles,
    status: Status.None,
    hpkeKey: digest(`hpke ${member.name}`),
    peerId: ethers.toUtf8Bytes(`peer of ${member.name}`),
    endpoint: "/ip4/127.0.0.1/tcp/4001",
    ...overrides,
  };
}

/** Everything deployed and wired, five members admitted, the council in charge; no bundle yet. */
export const deployed = () => deployOver(() => ethers.deployContract("OpenPermissions"));

/**
 * The same over permissions of the caller's choice: `beneath` deploys them, `wired` comes before the first member,
 * `handOver` after the last, while the deployer administers.
 */
export async function deployOver(beneath, { wired = async () => {}, handOver = async () => {} } = {}) {
  const [deployer, stranger, ...signers] = await ethers.getSigners();
  const manager = await ethers.deployContract("AccessManager", [deployer.address]);
  const permissions = await beneath(manager);
  const participants = await ethers.deployContract("ParticipantRegistry", [manager.target, permissions.target]);
  const keys = await ethers.deployContract("KeyRegistry", [manager.target, participants.target]);
  const lineage = await ethers.deployContract("LineageRegistry", [manager.target, participants.target, keys.target]);
  const consents = await ethers.deployContract("ConsentRegistry", [participants.target]);
  const nonce = (await deployer.getNonce()) + 2;
  const known = [participants.target, lineage.target, ethers.getCreateAddress({ from: deployer.address, nonce })];
  const rights = await ethers.deployContract("UsageRights", known);
  const budgets = await ethers.deployContract("PrivacyBudget", known);
  const jobs = await ethers.deployContract("JobLedger", [
    manager.target, participants.target, lineage.target, consents.target, rights.target, budgets.target, TIMINGS, QUORUM,
  ]);
  const council = await ethers.deployContract("MemberCouncil", [participants.target, VOTING_PERIOD, QUORUM_BPS]);
  const validators = await ethers.deployContract("ValidatorSet", [manager.target, CHAIN]);
  const reputation = await ethers.deployContract("Reputation", [manager.target, participants.target, jobs.target, RULE]);
  for (const [role, holder, target, names] of [
    [1, participants, permissions, ["allow", "revoke"]], [2, reputation, participants, ["suspend"]],
  ]) {
    const selectors = names.map((name) => target.interface.getFunction(name).selector);
    await manager.setTargetFunctionRole(target.target, selectors, role);
    await manager.grantRole(role, holder.target, 0);
  }
  await wired(permissions, deployer);

  const members = {};
  for (const [key, [name, roles]] of Object.entries(MEMBERS)) {
    members[key] = { name, id: label(name), roles, account: signers.shift(), node: signers.shift() };
    await participants.admit(participantOf(members[key]));
  }
  await keys.allowParameters(PARAMETERS, 128);
  await manager.grantRole(0, council.target, 0);
  await manager.renounceRole(0, deployer.address);
  await handOver(council, deployer);
  const contracts = { participants, keys, lineage, consents, rights, budgets, jobs, council, validators, reputation, permissions };
  return { ...contracts, contracts, manager, members, ...members, deployer, stranger, spare: signers };
}

/** The same, with a bundle of north's that university may run one kernel on. */
export async function ready() {
  const n = { ...(await deployed()), keyId: digest("key north") };
  await n.keys.connect(n.north.account).registerKeyDomain(n.keyId, PARAMETERS, digest("public north"));
  const bundle = await registerBundle(n, "bundle north");
  await anchor(n, 1, 50);
  await n.budgets.connect(n.north.account).setBudget(bundle, 10_000);
  const grantId = await grant(n, {}, bundle);
  return Object.freeze({ ...n, bundle, grantId });
}

export async function registration(n, content, overrides = {}) {
  return {
    contentDigest: digest(content),
    parents: [],
    keyId: n.keyId,
    policyDigest: digest("policy"),
    consentScope: PURPOSE,
    retainUntil: (await time.latest()) + 365 * DAY,
    ...overrides,
  };
}

export async function registerBundle(n, content, overrides = {}) {
  const given = await registration(n, content, overrides);
  await n.lineage.connect(n.north.account).registerBundle(given);
  return ethers.keccak256(encode(["bytes32", "bytes32"], [n.north.id, given.contentDigest]));
}

export async function anchor(n, epoch, cohortFloor, steward = n.north) {
  return n.consents
    .connect(steward.account)
    .anchorEpoch(PURPOSE, epoch, digest(`root ${epoch}`), digest(`status ${epoch}`), cohortFloor);
}

export async function terms(overrides = {}) {
  return {
    kernels: [KERNEL],
    uses: 3,
    expiresAt: (await time.latest()) + 30 * DAY,
    rhoMicro: 5_000,
    minCohort: 50,
    level: Level.Replicated,
    replicas: 2,
    rowLevel: false,
    ...overrides,
  };
}

/** A request of university's for north's bundle, undecided. */
export async function ask(n, overrides = {}, bundle = n.bundle) {
  const asked = await terms(overrides);
  const rights = n.rights.connect(n.university.account);
  const grantId = await rights.requestUsage.staticCall(bundle, PURPOSE, asked);
  await rights.requestUsage(bundle, PURPOSE, asked);
  return grantId;
}

export async function grant(n, overrides = {}, bundle = n.bundle) {
  const grantId = await ask(n, overrides, bundle);
  await n.rights.connect(n.north.account).grantUsage(grantId, await terms(overrides));
  return grantId;
}

/** Passes and executes one proposal of the council; returns the execution's transaction. */
export async function govern(n, contract, name, args) {
  const voters = [];
  for (const member of [n.auditor, n.compute, n.university, n.south, n.north]) {
    if (await n.participants.isActive(member.id)) voters.push(n.council.connect(member.account));
  }
  await voters[0].propose(contract.target, contract.interface.encodeFunctionData(name, args));
  const id = await n.council.proposalCount();
  for (const voter of voters.slice(1)) await voter.vote(id, true);
  return voters[0].execute(id);
}

/** The council wraps what the governed call reverted with. */
export async function expectGovernedRevert(n, promise, contract, name, args) {
  const reason = contract.interface.encodeErrorResult(name, args);
  await expect(promise).to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed").withArgs(
    (id) => id > 0n,
    reason,
  );
}

export const setStatus = (n, member, status) => govern(n, n.participants, "setStatus", [member.id, status]);

export function request(n, overrides = {}) {
  return {
    artifactId: n.bundle,
    grantId: n.grantId,
    kernelId: KERNEL,
    parametersDigest: digest("parameters"),
    purpose: PURPOSE,
    consentEpoch: 1,
    policyVersion: 1,
    rhoMicro: 1_000,
    rowLevel: false,
    nonce: 1,
    ...overrides,
  };
}

const posted = new Map();

/** Posts, and remembers what was asked: steps that end a job give it back. */
export async function posting(n, overrides = {}) {
  const asked = request(n, overrides);
  const jobId = await n.jobs.jobIdOf(n.university.id, asked);
  posted.set(jobId, [n.university.id, asked]);
  return { jobId, sent: await n.jobs.connect(n.university.account).postJob(asked) };
}
export const post = async (n, overrides) => (await posting(n, overrides)).jobId;

/** Requester and request of a job, as the ledger wants them back; those of nobody's job for an unknown id. */
export const given = (n, jobId) => posted.get(jobId) ?? [n.university.id, request(n, { nonce: 1_000_000 })];

export const RESULT = digest("result");
export const SALT = digest("salt");
export const possession = (verifier, result) => digest(`${verifier.name} holds ${result}`);

export async function commitment(n, jobId, verifier, result = RESULT, overrides = {}) {
  const { chainId } = await ethers.provider.getNetwork();
  const bound = { chainId, contract: n.jobs.target, jobId, verifier: verifier.id, ...overrides };
  return ethers.keccak256(
    encode(
      ["uint256", "address", "bytes32", "bytes32", "bytes32", "bytes32", "bytes32"],
      [bound.chainId, bound.contract, bound.jobId, bound.verifier, result, possession(verifier, result), SALT],
    ),
  );
}

export const claim = (n, jobId) => n.jobs.connect(n.compute.node).claimJob(jobId);
export const commitResult = (n, jobId, result = RESULT, verdicts = []) =>
  n.jobs.connect(n.compute.node).commitResult(jobId, result, verdicts);

const VERDICT = {
  Verdict: [{ name: "jobId", type: "bytes32" }, { name: "commitment", type: "bytes32" }, { name: "deadline", type: "uint64" }],
};
export const NEVER = 2n ** 64n - 1n;

/** A verifier's word on a commitment, for anybody to bring. */
export async function signed(n, jobId, verifier, bound, overrides = {}) {
  const { chainId } = await ethers.provider.getNetwork();
  const { domain = {}, deadline = NEVER, signedJob = jobId } = overrides;
  const signature = ethers.Signature.from(await verifier.node.signTypedData(
    { name: "Usufruct", version: "1", chainId, verifyingContract: n.jobs.target, ...domain },
    VERDICT,
    { jobId: signedJob, commitment: bound, deadline },
  ));
  return { commitment: bound, deadline, r: signature.r, vs: signature.yParityAndS };
}

/** Signed verdicts of several verifiers, one digest each, in the order that the ledger wants. */
export async function verdicts(n, jobId, found) {
  const ascending = [...found].sort(([a], [b]) => (BigInt(a.node.address) < BigInt(b.node.address) ? -1 : 1));
  return Promise.all(
    ascending.map(async ([verifier, result]) => signed(n, jobId, verifier, await commitment(n, jobId, verifier, result))),
  );
}
export const commitVerdict = async (n, jobId, verifier, result = RESULT) =>
  n.jobs.connect(verifier.node).commitVerdicts(jobId, await verdicts(n, jobId, [[verifier, result]]));

/** The job's events since its result was committed, as whoever reveals shows them. */
export async function history(n, jobId) {
  const logs = await ethers.provider.getLogs({ address: n.jobs.target, fromBlock: 0, topics: [null, jobId] });
  const events = logs.map((log) => n.jobs.interface.parseLog(log));
  const at = events.findIndex(({ name }) => name === "ResultCommitted");
  if (at < 0) {
    return { head: ZERO, executor: ZERO, resultDigest: ZERO, deadline: 0, verifiers: [], commitments: [], revealed: [] };
  }
  const named = (wanted) => events.filter(({ name }) => name === wanted);
  const { executor, resultDigest, deadline } = events[at].args;
  return {
    head: events[at - 1].args.head,
    executor,
    resultDigest,
    deadline,
    verifiers: named("VerdictCommitted").map(({ args }) => args.verifier),
    commitments: named("VerdictCommitted").map(({ args }) => args.commitment),
    revealed: named("VerdictRevealed").map(({ args }) => ethers.keccak256(encode(
      ["bytes32", "bytes32", "bytes32", "bytes32", "bool"],
      [jobId, args.verifier, args.resultDigest, args.possession, args.agrees],
    ))),
  };
}

/** What a verifier committed to, to be opened at its place in the history. */
export const opening = (committed, verifier, result = RESULT, overrides = {}) => ({
  position: Math.max(0, committed.verifiers.indexOf(verifier.id)),
  resultDigest: result,
  possession: possession(verifier, result),
  salt: SALT,
  ...overrides,
});
export async function reveal(n, jobId, verifier, result = RESULT, overrides = {}) {
  const committed = await history(n, jobId);
  const opened = opening(committed, verifier, result, overrides);
  return n.jobs.connect(verifier.node).revealVerdicts(...given(n, jobId), committed, [opened]);
}

const STEPS = [
  ["Posted", async () => {}],
  ["Claimed", claim],
  ["Committed", (n, jobId) => commitResult(n, jobId)],
  ["Revealing", async (n, jobId) => {
    for (const verifier of [n.north, n.south, n.auditor]) await commitVerdict(n, jobId, verifier);
  }],
  ["Verified", async (n, jobId) => {
    for (const verifier of [n.north, n.south, n.auditor]) await reveal(n, jobId, verifier);
  }],
  ["Opened", (n, jobId) => n.jobs.connect(n.north.node).openRelease(...given(n, jobId))],
  ["Released", (n, jobId) => n.jobs.connect(n.north.node).recordRelease(jobId, digest("release"), 1_500_000)],
];

/** Posts a job and walks it to `state` along the straight path. */
export async function jobIn(n, state, overrides = {}) {
  const jobId = await post(n, overrides);
  for (const [reached, step] of STEPS) {
    await step(n, jobId);
    if (reached === state) break;
  }
  return jobId;
}

/** A job whose verifiers found `found`, one digest each of north, south and auditor; null commits nothing. */
export async function judged(n, found, overrides = {}) {
  const jobId = await jobIn(n, "Committed", overrides);
  const verifiers = [n.north, n.south, n.auditor].map((verifier, index) => [verifier, found[index]]);
  const committed = verifiers.filter(([, result]) => result !== null);
  for (const [verifier, result] of committed) await commitVerdict(n, jobId, verifier, result);
  if (committed.length < verifiers.length) {
    await passDeadline(n, jobId);
    await n.jobs.connect(n.auditor.node).closeCommits(...given(n, jobId));
  }
  for (const [verifier, result] of committed) await reveal(n, jobId, verifier, result);
  return jobId;
}

/** The same network, where a dispute lasts long enough for a vote. */
export async function disputable() {
  const n = await ready();
  await govern(n, n.jobs, "setTimings", [{ ...TIMINGS, dispute: 5000 }]);
  return n;
}
export const settle = (n, jobId, upheld) => govern(n, n.jobs, "settleDispute", [...given(n, jobId), upheld]);

export async function stateOf(n, jobId) {
  return (await n.jobs.progress(jobId)).state;
}

/** A job's whole series, as whoever reports its faults shows it. */
export async function series(n, jobId) {
  const logs = await ethers.provider.getLogs({ address: n.jobs.target, fromBlock: 0, topics: [null, jobId] });
  return logs.map((log) => {
    const { fragment, args, topic } = n.jobs.interface.parseLog(log);
    const covered = fragment.inputs.slice(0, -2);
    return { topic, payload: encode(covered, covered.map((_, index) => args[index])) };
  });
}
export const report = async (n, jobId, reporter = n.auditor.node) =>
  n.reputation.connect(reporter).report(jobId, await series(n, jobId));

/** The next transaction is mined `seconds` after the job's deadline. */
export async function atDeadline(n, jobId, seconds = 0) {
  await time.setNextBlockTimestamp(Number((await n.jobs.progress(jobId)).deadline) + seconds);
}

export async function passDeadline(n, jobId) {
  await time.increaseTo((await n.jobs.progress(jobId)).deadline);
}
