import { expect } from "chai";
import {
  Grant, KERNEL, Kind, Level, PURPOSE, Refusal, Role, Status, ZERO, ask, digest, encode, ethers, govern, grant, jobIn,
  label, loadFixture, ready, registerBundle, setStatus, terms, time,
} from "./network.js";

const UNKNOWN = digest("no such grant");
const asSteward = (n) => n.rights.connect(n.north.account);
const standing = async (n, grantId) => (await n.rights.standing(grantId))[0];
const statusOf = async (n, grantId) => (await n.rights.grant(grantId)).status;
const evaluate = async (n, grantId, overrides = {}) => {
  const given = {
    grantee: n.university.id, artifactId: n.bundle, purpose: PURPOSE, kernelId: KERNEL, rowLevel: false, ...overrides,
  };
  const [refusal] = await n.rights.evaluate(
    grantId, given.grantee, given.artifactId, given.purpose, given.kernelId, given.rowLevel,
  );
  return refusal;
};
const asJobLedger = async () => {
  const n = await ready();
  const rights = await ethers.deployContract("UsageRights", [
    n.participants.target, n.lineage.target, n.stranger.address,
  ]);
  return { ...n, rights, grantId: await grant({ ...n, rights }) };
};

describe("UsageRights", () => {
  describe("requestUsage", () => {
    it("opens a request whose terms stand in the event only", async () => {
      const n = await loadFixture(ready);
      const asked = await terms({ uses: 7 });
      const grantId = ethers.keccak256(encode(["bytes32", "bytes32", "uint256"], [n.bundle, n.university.id, 1]));
      await expect(n.rights.connect(n.university.account).requestUsage(n.bundle, PURPOSE, asked))
        .to.emit(n.rights, "UsageRequested")
        .withArgs(grantId, n.bundle, n.university.id, PURPOSE, (t) => t.uses === 7n, 1, (head) => head !== ZERO);
      const stored = await n.rights.grant(grantId);
      expect([stored.artifactId, stored.grantee, stored.purpose, stored.status, stored.used])
        .to.deep.equal([n.bundle, n.university.id, PURPOSE, Grant.Requested, 0n]);
      expect(stored.terms.uses).to.equal(0n);
    });

    it("reverts when the purpose is not the bundle's consent scope, or there is no such bundle", async () => {
      const n = await loadFixture(ready);
      const rights = n.rights.connect(n.university.account);
      const other = label("marketing");
      const asked = await terms();
      await expect(rights.requestUsage(n.bundle, other, asked))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsInvalidPurpose")
        .withArgs(other, PURPOSE);
      const jobId = await jobIn(n, "Verified");
      for (const id of [UNKNOWN, await n.lineage.derivedIdOf(jobId, Kind.Result)]) {
        for (const purpose of [PURPOSE, ZERO]) {
          await expect(rights.requestUsage(id, purpose, asked))
            .to.be.revertedWithCustomError(n.rights, "UsageRightsInvalidPurpose")
            .withArgs(purpose, ZERO);
        }
      }
    });

    it("reverts for a 17th kernel", async () => {
      const n = await loadFixture(ready);
      await expect(ask(n, { kernels: Array(17).fill(KERNEL) }))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsInvalidTerms");
      await ask(n, { kernels: Array(16).fill(KERNEL) });
    });
  });

  describe("grantUsage", () => {
    it("stores the steward's terms, not the asked ones", async () => {
      const n = await loadFixture(ready);
      const grantId = await ask(n, { uses: 100 });
      const own = await terms({ uses: 2, rowLevel: true });
      await expect(asSteward(n).grantUsage(grantId, own))
        .to.emit(n.rights, "UsageGranted")
        .withArgs(grantId, (t) => t.uses === 2n && t.rowLevel, 2, (head) => head !== ZERO);
      const stored = await n.rights.grant(grantId);
      expect(stored.status).to.equal(Grant.Granted);
      expect(stored.terms).to.deep.equal([
        [KERNEL], 2n, BigInt(own.expiresAt), 5000n, 50n, Level.Replicated, 2n, true,
      ]);
      expect(await standing(n, grantId)).to.equal(Refusal.None);
    });

    it("reverts when the caller is not the steward, or nobody asked", async () => {
      const n = await loadFixture(ready);
      const grantId = await ask(n);
      await expect(n.rights.connect(n.south.account).grantUsage(grantId, await terms()))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotSteward")
        .withArgs(n.bundle, n.south.account.address);
      await expect(asSteward(n).grantUsage(UNKNOWN, await terms()))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsUnknown")
        .withArgs(UNKNOWN);
    });

    it("reverts when the request was decided", async () => {
      const n = await loadFixture(ready);
      await expect(asSteward(n).grantUsage(n.grantId, await terms()))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotRequested")
        .withArgs(n.grantId, Grant.Granted);
      await asSteward(n).revokeArtifact(n.bundle);
      await expect(asSteward(n).denyUsage(n.grantId, Refusal.LevelTooLow))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotRequested")
        .withArgs(n.grantId, Grant.Revoked);
    });

    for (const [why, overrides] of Object.entries({
      "the expiry is not in the future": { expiresAt: 1 },
      "the level is below Replicated": { level: Level.Algebraic },
      "no verifier must agree": { replicas: 0 },
      "there are 17 kernels": { kernels: Array(17).fill(KERNEL) },
    })) {
      it(`reverts when ${why}`, async () => {
        const n = await loadFixture(ready);
        const grantId = await ask(n);
        await expect(asSteward(n).grantUsage(grantId, await terms(overrides)))
          .to.be.revertedWithCustomError(n.rights, "UsageRightsInvalidTerms")
          .withArgs(grantId);
      });
    }
  });

  describe("denyUsage", () => {
    it("records the reason; what is denied stays denied", async () => {
      const n = await loadFixture(ready);
      const grantId = await ask(n);
      await expect(asSteward(n).denyUsage(grantId, Refusal.CohortTooSmall))
        .to.emit(n.rights, "UsageDenied")
        .withArgs(grantId, Refusal.CohortTooSmall, 2, (head) => head !== ZERO);
      expect(await statusOf(n, grantId)).to.equal(Grant.Denied);
      expect(await standing(n, grantId)).to.equal(Refusal.GrantNotOpen);
      await expect(asSteward(n).grantUsage(grantId, await terms()))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotRequested")
        .withArgs(grantId, Grant.Denied);
    });

    it("reverts without a reason", async () => {
      const n = await loadFixture(ready);
      const grantId = await ask(n);
      await expect(asSteward(n).denyUsage(grantId, Refusal.None))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsReasonMissing")
        .withArgs(grantId);
    });

    it("is still open to a steward that lost the role, as revoking is; granting is not", async () => {
      const n = await loadFixture(ready);
      const [first, second] = [await ask(n), await ask(n)];
      await govern(n, n.participants, "setRoles", [n.north.id, Role.AUDITOR]);
      await expect(asSteward(n).grantUsage(first, await terms()))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryMissingRole")
        .withArgs(n.north.id, Role.STEWARD);
      await asSteward(n).denyUsage(second, Refusal.CohortTooSmall);
      await asSteward(n).revokeUsage(n.grantId);
      expect(await statusOf(n, n.grantId)).to.equal(Grant.Revoked);
    });
  });

  describe("revokeUsage", () => {
    it("takes the grant back, once", async () => {
      const n = await loadFixture(ready);
      await expect(asSteward(n).revokeUsage(n.grantId))
        .to.emit(n.rights, "UsageRevoked")
        .withArgs(n.grantId, 3, (head) => head !== ZERO);
      expect(await standing(n, n.grantId)).to.equal(Refusal.GrantRevoked);
      await expect(asSteward(n).revokeUsage(n.grantId))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotGranted")
        .withArgs(n.grantId, Grant.Revoked);
    });

    it("reverts for another steward", async () => {
      const n = await loadFixture(ready);
      await expect(n.rights.connect(n.south.account).revokeUsage(n.grantId))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNotSteward")
        .withArgs(n.bundle, n.south.account.address);
    });
  });

  describe("revokeArtifact and revokeGrantee", () => {
    it("take back every grant decided before, any number, in one call each; later grants stand", async () => {
      for (const revoke of ["revokeArtifact", "revokeGrantee"]) {
        const n = await loadFixture(ready);
        const grants = [n.grantId, await grant(n), await grant(n), await grant(n)];
        const open = await ask(n);
        const [event, args] = revoke === "revokeArtifact"
          ? ["ArtifactUsageRevoked", [n.bundle, 1]]
          : ["GranteeUsageRevoked", [n.north.id, n.university.id, 1]];
        const of = revoke === "revokeArtifact" ? n.bundle : n.university.id;
        await expect(asSteward(n)[revoke](of)).to.emit(n.rights, event).withArgs(...args);
        for (const grantId of grants) {
          expect(await statusOf(n, grantId)).to.equal(Grant.Revoked);
          expect(await standing(n, grantId)).to.equal(Refusal.GrantRevoked);
        }
        expect(await statusOf(n, open)).to.equal(Grant.Requested);
        await asSteward(n).grantUsage(open, await terms());
        expect(await standing(n, open)).to.equal(Refusal.None);
      }
    });

    it("spare the steward's other bundles or other stewards' grants", async () => {
      const n = await loadFixture(ready);
      const other = await registerBundle(n, "second");
      const onOther = await grant(n, {}, other);
      await asSteward(n).revokeArtifact(n.bundle);
      expect(await standing(n, onOther)).to.equal(Refusal.None);
      await n.rights.connect(n.south.account).revokeGrantee(n.university.id);
      expect(await standing(n, onOther)).to.equal(Refusal.None);
      await asSteward(n).revokeGrantee(n.university.id);
      expect(await standing(n, onOther)).to.equal(Refusal.GrantRevoked);
    });

    it("revert for another's or no artifact", async () => {
      const n = await loadFixture(ready);
      for (const id of [n.bundle, UNKNOWN]) {
        await expect(n.rights.connect(n.south.account).revokeArtifact(id))
          .to.be.revertedWithCustomError(n.rights, "UsageRightsNotSteward")
          .withArgs(id, n.south.account.address);
      }
    });
  });

  describe("consumeUse and restoreUse", () => {
    it("count uses and rho up to the grant's limits and back", async () => {
      const n = await loadFixture(asJobLedger);
      const rights = n.rights.connect(n.stranger);
      const refused = (promise, reason) =>
        expect(promise).to.be.revertedWithCustomError(n.rights, "UsageRightsRefused").withArgs(n.grantId, reason);
      const counted = async () => [(await n.rights.grant(n.grantId)).used, await n.rights.committedUnder(n.grantId)];
      await rights.consumeUse(n.grantId, 4_000);
      await refused(rights.consumeUse(n.grantId, 1_001), Refusal.BudgetExceeded);
      await rights.consumeUse(n.grantId, 600);
      await rights.consumeUse(n.grantId, 400);
      expect(await counted()).to.deep.equal([3n, 5_000n]);
      await refused(rights.consumeUse(n.grantId, 0), Refusal.UsesExhausted);
      await rights.restoreUse(n.grantId, 600);
      expect(await counted()).to.deep.equal([2n, 4_400n]);
      await rights.consumeUse(n.grantId, 600);
    });

    it("revert for grants that do not stand, and when nothing is counted", async () => {
      const n = await loadFixture(asJobLedger);
      const rights = n.rights.connect(n.stranger);
      const refused = (promise, ...args) =>
        expect(promise).to.be.revertedWithCustomError(n.rights, "UsageRightsRefused").withArgs(...args);
      await refused(rights.consumeUse(UNKNOWN, 1), UNKNOWN, Refusal.GrantUnknown);
      const open = await ask(n);
      await refused(rights.consumeUse(open, 1), open, Refusal.GrantNotOpen);
      await rights.consumeUse(n.grantId, 10);
      await expect(rights.restoreUse(n.grantId, 11))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNothingToRestore")
        .withArgs(n.grantId);
      await rights.restoreUse(n.grantId, 10);
      await asSteward(n).revokeUsage(n.grantId);
      await refused(rights.consumeUse(n.grantId, 1), n.grantId, Refusal.GrantRevoked);
      await expect(rights.restoreUse(n.grantId, 0))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsNothingToRestore")
        .withArgs(n.grantId);
      await expect(rights.restoreUse(UNKNOWN, 1))
        .to.be.revertedWithCustomError(n.rights, "UsageRightsUnknown")
        .withArgs(UNKNOWN);
    });
  });

  describe("evaluate", () => {
    it("denies by default, an empty list of kernels included", async () => {
      const n = await loadFixture(ready);
      expect(await evaluate(n, UNKNOWN)).to.equal(Refusal.GrantUnknown);
      expect(await evaluate(n, await ask(n))).to.equal(Refusal.GrantNotOpen);
      expect(await evaluate(n, await grant(n, { kernels: [] }))).to.equal(Refusal.KernelNotGranted);
      expect(await evaluate(n, await grant(n, { kernels: [] }), { kernelId: ZERO })).to.equal(Refusal.KernelNotGranted);
      expect(await evaluate(n, await grant(n, { uses: 0 }))).to.equal(Refusal.UsesExhausted);
    });

    it("compares grantee, artifact, purpose, kernel and row level", async () => {
      const n = await loadFixture(ready);
      expect(await evaluate(n, n.grantId)).to.equal(Refusal.None);
      expect(await evaluate(n, n.grantId, { grantee: n.south.id })).to.equal(Refusal.GranteeMismatch);
      expect(await evaluate(n, n.grantId, { artifactId: UNKNOWN })).to.equal(Refusal.ArtifactMismatch);
      expect(await evaluate(n, n.grantId, { purpose: label("x") })).to.equal(Refusal.PurposeNotGranted);
      expect(await evaluate(n, n.grantId, { kernelId: UNKNOWN })).to.equal(Refusal.KernelNotGranted);
      expect(await evaluate(n, n.grantId, { rowLevel: true })).to.equal(Refusal.RowLevelNotGranted);
      const rows = await grant(n, { rowLevel: true });
      expect(await evaluate(n, rows, { rowLevel: true })).to.equal(Refusal.None);
      expect(await evaluate(n, rows)).to.equal(Refusal.None);
    });

    it("calls a grant void from the second that it expires", async () => {
      const n = await loadFixture(ready);
      const { terms: { expiresAt } } = await n.rights.grant(n.grantId);
      await time.increaseTo(expiresAt - 1n);
      expect(await evaluate(n, n.grantId)).to.equal(Refusal.None);
      await time.increaseTo(expiresAt);
      expect(await evaluate(n, n.grantId)).to.equal(Refusal.GrantExpired);
    });
  });

  it("lets no suspended steward grant", async () => {
    const n = await loadFixture(ready);
    const grantId = await ask(n);
    await setStatus(n, n.north, Status.Suspended);
    await expect(asSteward(n).grantUsage(grantId, await terms()))
      .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotActive")
      .withArgs(n.north.id);
  });
});
