// Writes docs/gas.md from real runs: `npx hardhat run scripts/gas.js`.
import { writeFileSync } from "node:fs";
import {
  KERNEL, PURPOSE, Status, anchor, claim, commitResult, commitVerdict, deployed, digest, ethers, govern,
  participantOf, passDeadline, ready, registration, request, reveal, setStatus, terms,
} from "../tests/contracts/network.js";

const format = (gas) => String(gas).replace(/\B(?=(\d{3})+$)/g, ",");
const gasOf = async (sent) => Number((await (await sent).wait()).gasUsed);
const table = (head, rows) =>
  [`| ${head[0]} | ${head[1]} |`, "|---|---:|", ...rows.map(([what, gas]) => `| ${what} | ${format(gas)} |`)].join("\n");

async function life(n, nonce) {
  const jobs = (signer) => n.jobs.connect(signer);
  const given = request(n, { nonce });
  const jobId = await n.jobs.jobIdOf(n.university.id, nonce);
  const rows = [["`postJob`", await gasOf(jobs(n.university.account).postJob(given))]];
  rows.push(["`claimJob`", await gasOf(claim(n, jobId))]);
  rows.push(["`commitResult`", await gasOf(commitResult(n, jobId))]);
  for (const [place, verifier] of [["first", n.north], ["second", n.south]]) {
    rows.push([`\`commitVerdict\`, ${place} verifier`, await gasOf(commitVerdict(n, jobId, verifier))]);
  }
  rows.push(["`commitVerdict`, last verifier (closes commits)", await gasOf(commitVerdict(n, jobId, n.auditor))]);
  for (const [place, verifier] of [["first", n.north], ["second", n.south]]) {
    rows.push([`\`revealVerdict\`, ${place} verifier`, await gasOf(reveal(n, jobId, verifier))]);
  }
  const last = await gasOf(reveal(n, jobId, n.auditor));
  rows.push(["`revealVerdict`, last verifier (makes it Verified, records the result)", last]);
  rows.push(["`openRelease` (settles the budget)", await gasOf(jobs(n.north.node).openRelease(jobId))]);
  const release = jobs(n.north.node).recordRelease(jobId, digest(`release ${nonce}`), 1_500_000);
  rows.push(["`recordRelease` (records the release)", await gasOf(release)]);
  rows.push(["**one job, posting to release**", rows.reduce((sum, [, gas]) => sum + gas, 0)]);
  return rows;
}

async function otherEnds(n) {
  const denied = await gasOf(n.jobs.connect(n.university.account).postJob(request(n, { nonce: 90, rowLevel: true })));
  await n.jobs.connect(n.university.account).postJob(request(n, { nonce: 91 }));
  const jobId = await n.jobs.jobIdOf(n.university.id, 91);
  await passDeadline(n, jobId);
  const expired = await gasOf(n.jobs.connect(n.auditor.node).expireJob(jobId));
  return [["`postJob` that is denied", denied], ["`expireJob` (gives use and rho back)", expired]];
}

async function registries() {
  const n = { ...(await deployed()), keyId: digest("key north") };
  const rows = [];
  const north = (contract) => contract.connect(n.north.account);
  const key = north(n.keys).registerKeyDomain(n.keyId, digest("bfv-4096-54"), digest("public"));
  rows.push(["`KeyRegistry.registerKeyDomain`", await gasOf(key)]);
  const given = await registration(n, "bundle");
  n.bundle = await north(n.lineage).registerBundle.staticCall(given);
  rows.push(["`LineageRegistry.registerBundle`, no parent", await gasOf(north(n.lineage).registerBundle(given))]);
  const child = await registration(n, "child", { parents: [n.bundle, n.bundle] });
  rows.push(["`LineageRegistry.registerBundle`, two parents", await gasOf(north(n.lineage).registerBundle(child))]);
  rows.push(["`LineageRegistry.setPolicy`", await gasOf(north(n.lineage).setPolicy(n.bundle, digest("p2")))]);
  rows.push(["`ConsentRegistry.anchorEpoch`, first of a series", await gasOf(anchor(n, 1, 50))]);
  rows.push(["`ConsentRegistry.anchorEpoch`, later, any number of subjects", await gasOf(anchor(n, 2, 50))]);
  rows.push(["`PrivacyBudget.setBudget`", await gasOf(north(n.budgets).setBudget(n.bundle, 10_000))]);
  const asked = await terms({ kernels: [KERNEL, digest("linear")] });
  const partner = n.rights.connect(n.university.account);
  for (let grants = 0; grants < 3; grants += 1) {
    const grantId = await partner.requestUsage.staticCall(n.bundle, PURPOSE, asked);
    const requested = await gasOf(partner.requestUsage(n.bundle, PURPOSE, asked));
    const granted = await gasOf(north(n.rights).grantUsage(grantId, asked));
    if (grants === 1) {
      rows.push(["`UsageRights.requestUsage`, two kernels", requested]);
      rows.push(["`UsageRights.grantUsage`, two kernels", granted]);
      rows.push(["`UsageRights.revokeUsage`", await gasOf(north(n.rights).revokeUsage(grantId))]);
    }
  }
  const all = await gasOf(north(n.rights).revokeArtifact(n.bundle));
  rows.push(["`UsageRights.revokeArtifact`, any number of grants", all]);
  return rows;
}

async function council() {
  const n = await deployed();
  const [account, node] = n.spare;
  const member = { name: "newcomer", id: ethers.encodeBytes32String("newcomer"), roles: 4, account, node };
  const data = n.participants.interface.encodeFunctionData("admit", [participantOf(member)]);
  const rows = [["`propose`", await gasOf(n.council.connect(n.north.account).propose(n.participants.target, data))]];
  for (const voter of [n.south, n.auditor]) {
    const gas = await gasOf(n.council.connect(voter.account).vote(1, true));
    if (voter === n.south) rows.push(["`vote`", gas]);
  }
  rows.push(["`execute`, five members, admitting a sixth", await gasOf(n.council.connect(n.north.account).execute(1))]);
  rows.push(["`execute`, suspending a member", await gasOf(setStatus(n, n.university, Status.Suspended))]);
  for (const count of [5, 20]) {
    const keys = [...Array(count).keys()].map((i) => ethers.toBeHex((0x80n << 376n) | BigInt(i + 1), 48));
    const replaced = govern(n, n.validators, "replace", [ethers.concat(keys), Array(count).fill(20)]);
    rows.push([`\`execute\`, replacing the set of validators by one of ${count}`, await gasOf(replaced)]);
  }
  return rows;
}

async function deployment() {
  const { manager, contracts: c } = await deployed();
  const named = {
    AccessManager: manager, ParticipantRegistry: c.participants, KeyRegistry: c.keys, LineageRegistry: c.lineage,
    ConsentRegistry: c.consents, UsageRights: c.rights, PrivacyBudget: c.budgets, JobLedger: c.jobs,
    MemberCouncil: c.council, OpenPermissions: c.permissions, ValidatorSet: c.validators,
  };
  const rows = [];
  for (const [name, contract] of Object.entries(named)) {
    rows.push([`\`${name}\``, await gasOf(contract.deploymentTransaction())]);
  }
  return rows;
}

const n = await ready();
const whole = await life(n, 1);
const text = `# Gas

Generated by \`npx hardhat run scripts/gas.js\` from transactions on Hardhat's chain: solc 0.8.37, optimizer with 200
runs, cancun. Do not edit. Networks with zero gas price pay nothing, but a block still has a limit.

## One job, two of three verifiers must agree

Each row is one transaction; storage of the grant and of the bundle's account was written before.

${table(["transaction", "gas"], whole)}

## Other ends of a job

${table(["transaction", "gas"], await otherEnds(n))}

## Registries, consents and rights

${table(["transaction", "gas"], await registries())}

## The council

Over \`OpenPermissions\`; with the lists of a Subnet-EVM chain see "Governance" in \`docs/consortium.md\`.

${table(["transaction", "gas"], await council())}

## Deployment

${table(["contract", "gas"], await deployment())}
`;
writeFileSync(new URL("../docs/gas.md", import.meta.url), text);
