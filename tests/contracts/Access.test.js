// Who may call what, over every external function that changes state; a function that is not listed here fails a test.
import { expect } from "chai";
import { Role, State, Status, deployed, digest, ethers, govern, jobIn, loadFixture, ready, setStatus } from "./network.js";

const COUNCIL = {
  participants: ["admit", "setStatus", "setRoles"],
  keys: ["allowParameters", "disallowParameters"],
  jobs: ["settleDispute", "setTimings", "setQuorum"],
  validators: ["replace"],
  reputation: ["forgive", "setRule"],
};
const REPUTATION = { participants: ["suspend"] };
const JOB_LEDGER = {
  rights: ["consumeUse", "restoreUse"],
  budgets: ["reserve", "settle", "refund"],
};
const MEMBER = {
  participants: ["setEndpoint"],
  council: ["propose", "vote", "execute"],
  keys: ["retire"],
  rights: ["denyUsage", "revokeUsage", "revokeArtifact", "revokeGrantee"],
  jobs: ["commitVerdicts", "revealVerdicts", "closeCommits", "closeReveals", "expireJob"],
  reputation: ["report"],
};
const EITHER_ACCOUNT = ["setEndpoint", ...MEMBER.jobs, ...MEMBER.reputation];
const MEMBER_OR_COUNCIL = { keys: ["markCompromised"], lineage: ["setFrozen"] };
const ITSELF = { council: ["setParameters"] };
const MANAGED = ["participants", "keys", "lineage", "jobs", "validators", "reputation"];
const ROLE = {
  keys: { registerKeyDomain: ["account", Role.CUSTODIAN] },
  lineage: { registerBundle: ["account", Role.STEWARD], setPolicy: ["account", Role.STEWARD] },
  consents: { anchorEpoch: ["account", Role.STEWARD] },
  rights: { requestUsage: ["account", Role.PARTNER], grantUsage: ["account", Role.STEWARD] },
  budgets: { setBudget: ["account", Role.STEWARD] },
  jobs: {
    postJob: ["account", Role.PARTNER],
    claimJob: ["node", Role.COMPUTE],
    commitResult: ["node", Role.COMPUTE],
    openRelease: ["node", Role.CUSTODIAN],
    refuseRelease: ["node", Role.CUSTODIAN],
    recordRelease: ["node", Role.CUSTODIAN],
  },
};

function plain(input) {
  if (input.baseType === "array") return [];
  if (input.baseType === "tuple") return input.components.map(plain);
  if (input.type === "address") return ethers.ZeroAddress;
  if (input.type === "bool") return false;
  if (input.type === "string") return "";
  if (input.type === "bytes") return "0x";
  return input.type.startsWith("bytes") ? ethers.ZeroHash : 0;
}

const changing = (contract) =>
  contract.interface.fragments.filter((f) => f.type === "function" && !["view", "pure"].includes(f.stateMutability));

// Arguments are zeros, for access comes before everything else; two functions look their record up first.
function argumentsOf(n, fragment) {
  const args = fragment.inputs.map(plain);
  if (fragment.name === "markCompromised") return [n.keyId];
  if (fragment.name === "setFrozen") return [n.bundle, true];
  return args;
}

/** Name of the custom error that a call fails with, from whichever contract. */
async function failure(n, key, name, signer) {
  const contract = n.contracts[key];
  const fragment = contract.interface.getFunction(name);
  const data = contract.interface.encodeFunctionData(fragment, argumentsOf(n, fragment));
  try {
    await ethers.provider.call({ from: signer.address, to: contract.target, data });
    return null;
  } catch (error) {
    const reason = error.data?.data ?? error.data;
    for (const known of Object.values(n.contracts)) {
      const parsed = known.interface.parseError(reason);
      if (parsed) return parsed.name;
    }
    return reason;
  }
}

const flat = (table) => Object.entries(table).flatMap(([key, names]) => names.map((name) => [key, name]));

describe("Access", () => {
  it("lists every function that changes state", async () => {
    const n = await loadFixture(deployed);
    const listed = new Set([
      ...[COUNCIL, REPUTATION, JOB_LEDGER, MEMBER, MEMBER_OR_COUNCIL, ITSELF].flatMap(flat).map(([k, f]) => `${k}.${f}`),
      ...Object.entries(ROLE).flatMap(([key, functions]) => Object.keys(functions).map((f) => `${key}.${f}`)),
      ...MANAGED.map((key) => `${key}.setAuthority`),
    ]);
    const found = Object.entries(n.contracts).flatMap(([k, contract]) => changing(contract).map((f) => `${k}.${f.name}`));
    expect([...listed].sort()).to.deep.equal([...found].sort());
    expect(found.length).to.be.greaterThan(40);
  });

  const REFUSED = {
    stranger: [
      "ParticipantRegistryNotMember", "AccessManagedUnauthorized", "MemberCouncilOnlyItself", "KeyRegistryNotCustodian",
      "LineageRegistryNotSteward", "UsageRightsNotJobLedger", "PrivacyBudgetNotJobLedger",
    ],
    inactive: [
      "ParticipantRegistryNotActive", "AccessManagedUnauthorized", "MemberCouncilOnlyItself", "UsageRightsNotJobLedger",
      "PrivacyBudgetNotJobLedger",
    ],
  };

  it("lets strangers and the deployer change nothing", async () => {
    const n = await loadFixture(ready);
    for (const [key, contract] of Object.entries(n.contracts)) {
      for (const { name } of changing(contract)) {
        for (const signer of [n.stranger, n.deployer]) {
          expect(REFUSED.stranger, `${key}.${name}`).to.include(await failure(n, key, name, signer));
        }
      }
    }
  });

  for (const status of ["Suspended", "Removed"]) {
    it(`lets a ${status.toLowerCase()} member change nothing, whatever its roles`, async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.north.id, 63]);
      await setStatus(n, n.north, Status[status]);
      for (const [key, contract] of Object.entries(n.contracts)) {
        for (const { name } of changing(contract)) {
          for (const signer of [n.north.account, n.north.node]) {
            expect(REFUSED.inactive, `${key}.${name}`).to.include(await failure(n, key, name, signer));
          }
        }
      }
    });
  }

  it("leaves what is the council's to the council", async () => {
    const n = await loadFixture(ready);
    for (const [key, name] of flat(COUNCIL)) {
      for (const member of Object.values(n.members)) {
        for (const signer of [member.account, member.node]) {
          expect(await failure(n, key, name, signer), `${key}.${name}`).to.equal("AccessManagedUnauthorized");
        }
      }
    }
  });

  it("leaves what is the job ledger's to the job ledger, the council included", async () => {
    const n = await loadFixture(ready);
    for (const [key, name] of flat(JOB_LEDGER)) {
      const refusal = key === "rights" ? "UsageRightsNotJobLedger" : "PrivacyBudgetNotJobLedger";
      expect(await failure(n, key, name, n.north.account), name).to.equal(refusal);
      await expect(govern(n, n.contracts[key], name, argumentsOf(n, n.contracts[key].interface.getFunction(name))))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs(
          (id) => id > 0n,
          n.contracts[key].interface.encodeErrorResult(refusal, [n.council.target]),
        );
    }
  });

  it("leaves suspension by rule to the contract that keeps the rule, the council included", async () => {
    const n = await loadFixture(ready);
    for (const signer of [n.north.account, n.auditor.node]) {
      expect(await failure(n, "participants", "suspend", signer)).to.equal("AccessManagedUnauthorized");
    }
    await expect(govern(n, n.participants, "suspend", [n.south.id]))
      .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
      .withArgs(
        (id) => id > 0n,
        n.participants.interface.encodeErrorResult("AccessManagedUnauthorized", [n.council.target]),
      );
  });

  it("asks for the role, from the right account of the organisation", async () => {
    const n = await loadFixture(ready);
    await govern(n, n.participants, "setRoles", [n.south.id, 63]);
    for (const [key, functions] of Object.entries(ROLE)) {
      for (const [name, [account, role]] of Object.entries(functions)) {
        const [right, wrong] = account === "node" ? [n.south.node, n.south.account] : [n.south.account, n.south.node];
        const wrongAccount = account === "node" ? "ParticipantRegistryNotNode" : "ParticipantRegistryNotAuthority";
        expect(await failure(n, key, name, wrong), `${key}.${name}`).to.equal(wrongAccount);
        const withRole = await failure(n, key, name, right);
        expect(withRole, `${key}.${name}`).not.to.match(/^ParticipantRegistry|^AccessManaged/);
        await govern(n, n.participants, "setRoles", [n.south.id, 63 & ~role]);
        expect(await failure(n, key, name, right), `${key}.${name}`).to.equal("ParticipantRegistryMissingRole");
        await govern(n, n.participants, "setRoles", [n.south.id, 63]);
      }
    }
  });

  it("asks members' own acts of their authority, but for those that either account may do", async () => {
    const n = await loadFixture(ready);
    for (const [key, name] of flat(MEMBER)) {
      const byNode = await failure(n, key, name, n.auditor.node);
      if (EITHER_ACCOUNT.includes(name)) expect(byNode, name).to.not.match(/^ParticipantRegistry/);
      else expect(byNode, name).to.equal("ParticipantRegistryNotAuthority");
    }
  });

  it("stops a member in the middle of a job that it has a part in", async () => {
    const n = await loadFixture(ready);
    const jobId = await jobIn(n, "Claimed");
    await setStatus(n, n.compute, Status.Suspended);
    await expect(n.jobs.connect(n.compute.node).commitResult(jobId, digest("result"), []))
      .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotActive")
      .withArgs(n.compute.id);
    expect((await n.jobs.progress(jobId)).state).to.equal(State.Claimed);
  });

  it("gives nobody but council, registry and rule a role in the AccessManager", async () => {
    const n = await loadFixture(ready);
    const granted = await n.manager.queryFilter(n.manager.filters.RoleGranted());
    const revoked = await n.manager.queryFilter(n.manager.filters.RoleRevoked());
    const held = new Set(granted.map(({ args }) => `${args.roleId} ${args.account}`));
    for (const { args } of revoked) held.delete(`${args.roleId} ${args.account}`);
    expect([...held].sort()).to.deep.equal([
      `0 ${n.council.target}`, `1 ${n.participants.target}`, `2 ${n.reputation.target}`,
    ]);
    const wired = await n.manager.queryFilter(n.manager.filters.TargetFunctionRoleUpdated());
    const reserved = [["permissions", "allow"], ["permissions", "revoke"], ["participants", "suspend"]];
    const expected = reserved.map(([key, name]) => n.contracts[key].interface.getFunction(name).selector);
    expect(wired.map(({ args }) => args.selector).sort()).to.deep.equal(expected.sort());
  });
});
