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
  const rights = await ethers.deployContract("UsageRights", [manager.target, participants.target, lineage.target]);
  const budgets = await ethers.deployContract("PrivacyBudget", [
    manager.target, participants.target, lineage.target, rights.target,
  ]);
  const jobs = await ethers.deployContract("JobLedger", [
    manager.target, participants.target, keys.target, lineage.target, consents.target, rights.target, budgets.target,
    TIMINGS, QUORUM,
  ]);
  const council = await ethers.deployContract("MemberCouncil", [participants.target, VOTING_PERIOD, QUORUM_BPS]);
  const validators = await ethers.deployContract("ValidatorSet", [manager.target, CHAIN]);
  const reserved = [
    [1, lineage, ["recordDerived"]],
    [1, rights, ["consumeUse", "restoreUse"]],
    [1, budgets, ["reserve", "settle", "refund"]],
    [2, permissions, ["allow", "revoke"]],
  ];
  for (const [role, target, names] of reserved) {
    const selectors = names.map((name) => target.interface.getFunction(name).selector);
    await manager.setTargetFunctionRole(target.target, selectors, role);
  }
  await manager.grantRole(1, jobs.target, 0);
  await manager.grantRole(2, participants.target, 0);
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
  const contracts = { participants, keys, lineage, consents, rights, budgets, jobs, council, validators, permissions };
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

export async function post(n, overrides = {}) {
  const given = request(n, overrides);
  await n.jobs.connect(n.university.account).postJob(given);
  return n.jobs.jobIdOf(n.university.id, given.nonce);
}

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
export const commitResult = (n, jobId, result = RESULT) => n.jobs.connect(n.compute.node).commitResult(jobId, result);
export const commitVerdict = async (n, jobId, verifier, result = RESULT) =>
  n.jobs.connect(verifier.node).commitVerdict(jobId, await commitment(n, jobId, verifier, result));
export const reveal = (n, jobId, verifier, result = RESULT) =>
  n.jobs.connect(verifier.node).revealVerdict(jobId, result, possession(verifier, result), SALT);

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
  ["Opened", (n, jobId) => n.jobs.connect(n.north.node).openRelease(jobId)],
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
    await n.jobs.connect(n.auditor.node).closeCommits(jobId);
  }
  for (const [verifier, result] of committed) await reveal(n, jobId, verifier, result);
  return jobId;
}

export async function stateOf(n, jobId) {
  return (await n.jobs.job(jobId)).state;
}

/** The next transaction is mined `seconds` after the job's deadline. */
export async function atDeadline(n, jobId, seconds = 0) {
  await time.setNextBlockTimestamp(Number((await n.jobs.job(jobId)).deadline) + seconds);
}

export async function passDeadline(n, jobId) {
  await time.increaseTo((await n.jobs.job(jobId)).deadline);
}
