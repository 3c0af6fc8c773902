// Writes docs/gas.md from real runs: `npx hardhat run scripts/gas.js`.
import { writeFileSync } from "node:fs";
import {
  KERNEL, PURPOSE, RESULT, Status, anchor, claim, commitResult, commitVerdict, deployed, digest, ethers, given, govern, grant,
  history, jobIn, judged, opening, participantOf, passDeadline, post, posting, ready, registration, report, reveal, setStatus, terms,
  verdicts,
} from "../tests/contracts/network.js";

const format = (gas) => String(gas).replace(/\B(?=(\d{3})+$)/g, ",");
const gasOf = async (sent) => Number((await (await sent).wait()).gasUsed);
const table = (head, rows) =>
  [`| ${head[0]} | ${head[1]} |`, "|---|---:|", ...rows.map(([what, gas]) => `| ${what} | ${format(gas)} |`)].join("\n");

async function life(n, nonce) {
  const jobs = (signer) => n.jobs.connect(signer);
  const { jobId, sent } = await posting(n, { nonce });
  const rows = [["`postJob`", await gasOf(sent)]];
  rows.push(["`claimJob`", await gasOf(claim(n, jobId))]);
  rows.push(...(await together(n, jobId, [n.north, n.south, n.auditor])));
  rows.push(["**posting to Verified**", total(rows)]);
  const rest = [["`openRelease`", await gasOf(jobs(n.north.node).openRelease(...given(n, jobId)))]];
  const release = jobs(n.north.node).recordRelease(jobId, digest(`release ${nonce}`), 1_500_000);
  rest.push(["`recordRelease`", await gasOf(release)]);
  return [...rows, ...rest, ["**posting to Released**", total(rows.slice(0, -1)) + total(rest)]];
}

/** The executor brings what all verifiers say. */
async function together(n, jobId, verifiers) {
  const words = await verdicts(n, jobId, verifiers.map((verifier) => [verifier, RESULT]));
  const rows = [["`commitResult`, with the words of three verifiers", await gasOf(commitResult(n, jobId, RESULT, words))]];
  const committed = await history(n, jobId);
  const openings = verifiers.map((verifier) => opening(committed, verifier));
  const opened = n.jobs.connect(n.compute.node).revealVerdicts(...given(n, jobId), committed, openings);
  rows.push(["`revealVerdicts`, all three", await gasOf(opened)]);
  return rows;
}

const total = (rows) => rows.reduce((sum, [, gas]) => sum + gas, 0);

/** The same job when each party sends its own. */
async function apart(n, nonce) {
  const jobId = await post(n, { nonce });
  await claim(n, jobId);
  const rows = [["one verifier more, its word and its opening", await another(n)]];
  rows.push(["`commitResult`, alone", await gasOf(commitResult(n, jobId))]);
  const ordinal = ["first", "second", "last"];
  for (const [place, verifier] of [n.north, n.south, n.auditor].entries()) {
    rows.push([`\`commitVerdicts\`, ${ordinal[place]} of three by itself`, await gasOf(commitVerdict(n, jobId, verifier))]);
  }
  for (const [place, verifier] of [n.north, n.south, n.auditor].entries()) {
    rows.push([`\`revealVerdicts\`, ${ordinal[place]} of three by itself`, await gasOf(reveal(n, jobId, verifier))]);
  }
  return rows;
}

async function another(n) {
  const three = total(await together(n, await jobIn(n, "Claimed", { nonce: 80 }), [n.north, n.south, n.auditor]));
  await setStatus(n, n.auditor, Status.Suspended);
  const two = total(await together(n, await jobIn(n, "Claimed", { nonce: 81 }), [n.north, n.south]));
  await setStatus(n, n.auditor, Status.Active);
  return three - two;
}

async function otherEnds(n) {
  const denied = await gasOf((await posting(n, { nonce: 90, rowLevel: true })).sent);
  const jobId = await post(n, { nonce: 91 });
  await passDeadline(n, jobId);
  const expired = await gasOf(n.jobs.connect(n.auditor.node).expireJob(...given(n, jobId)));
  const refuted = await judged(n, [digest("other"), digest("other"), RESULT], { nonce: 92 });
  return [
    ["`postJob` that is denied", denied], ["`expireJob` (gives use and rho back)", expired],
    ["`Reputation.report` of a refuted job, two members at fault", await gasOf(report(n, refuted))],
  ];
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
    Reputation: c.reputation,
  };
  const rows = [];
  for (const [name, contract] of Object.entries(named)) {
    rows.push([`\`${name}\``, await gasOf(contract.deploymentTransaction())]);
  }
  return rows;
}

const begun = await ready();
const n = { ...begun, grantId: await grant(begun, { uses: 20, rhoMicro: 10_000 }) };
const whole = await life(n, 1);
const text = `# Gas

Generated by \`npx hardhat run scripts/gas.js\` from transactions on Hardhat's chain: solc 0.8.37, optimizer with 200
runs, cancun. Do not edit. Networks with zero gas price pay nothing, but a block still has a limit.

## One job, two of three verifiers must agree

Each row is one transaction; storage of the grant and of the bundle's account was written before. The executor brings the
verifiers' words and openings along.

${table(["transaction", "gas"], whole)}

## More verifiers, and verifiers by themselves

What each verifier more adds, and what verifiers pay whose words the executor does not bring.

${table(["transaction", "gas"], await apart(n, 2))}

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
