import { expect } from "chai";
import {
  Freeze, KERNEL, Kind, PARAMETERS, PURPOSE, Refusal, Role, Status, ZERO, digest, encode, ethers, govern, jobIn,
  loadFixture, ready, registerBundle, registration, setStatus, time,
} from "./network.js";

const UNKNOWN = digest("no such artifact");

describe("LineageRegistry", () => {
  describe("registerBundle", () => {
    it("stores the bundle under its steward, policy version 1", async () => {
      const n = await loadFixture(ready);
      const given = await registration(n, "second", { parents: [n.bundle] });
      const id = ethers.keccak256(encode(["bytes32", "bytes32"], [n.north.id, given.contentDigest]));
      await expect(n.lineage.connect(n.north.account).registerBundle(given))
        .to.emit(n.lineage, "BundleRegistered")
        .withArgs(id, n.north.id, (r) => r.parents[0] === n.bundle && r.keyId === n.keyId, 1, (head) => head !== ZERO);
      const stored = await n.lineage.artifact(id);
      expect(stored).to.deep.equal([
        Kind.Bundle, n.north.id, n.keyId, given.contentDigest, given.policyDigest, 1n, PURPOSE,
        BigInt(given.retainUntil), BigInt(await time.latest()), Freeze.None,
      ]);
      expect(await n.lineage.usability(id)).to.equal(Refusal.None);
    });

    it("reverts for the same content by the same steward", async () => {
      const n = await loadFixture(ready);
      await expect(registerBundle(n, "bundle north"))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryAlreadyKnown")
        .withArgs(n.bundle);
    });

    for (const [why, overrides] of Object.entries({
      "the content digest is zero": { contentDigest: ZERO },
      "the policy digest is zero": { policyDigest: ZERO },
      "the consent scope is zero": { consentScope: ZERO },
      "the retention has passed": { retainUntil: 1 },
    })) {
      it(`reverts when ${why}`, async () => {
        const n = await loadFixture(ready);
        await expect(registerBundle(n, "second", overrides))
          .to.be.revertedWithCustomError(n.lineage, "LineageRegistryInvalidRegistration")
          .withArgs(overrides.contentDigest ?? digest("second"));
      });
    }

    it("reverts for an unknown parent, and for a 33rd", async () => {
      const n = await loadFixture(ready);
      await expect(registerBundle(n, "second", { parents: [n.bundle, UNKNOWN] }))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryUnknownParent")
        .withArgs(UNKNOWN);
      await expect(registerBundle(n, "second", { parents: Array(33).fill(n.bundle) }))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryTooManyParents")
        .withArgs(33);
      await registerBundle(n, "second", { parents: Array(32).fill(n.bundle) });
    });

    it("reverts when the key domain is not usable", async () => {
      const n = await loadFixture(ready);
      await expect(registerBundle(n, "second", { keyId: UNKNOWN }))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotUsable")
        .withArgs(UNKNOWN);
      await n.keys.connect(n.north.account).retire(n.keyId);
      await expect(registerBundle(n, "second"))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotUsable")
        .withArgs(n.keyId);
    });

    it("Relabelled rows: reverts under a key in another's custody, for new content and for a copy", async () => {
      const n = await loadFixture(ready);
      const own = digest("key south");
      await n.keys.connect(n.south.account).registerKeyDomain(own, PARAMETERS, digest("public south"));
      for (const content of ["bundle north", "second"]) {
        const given = await registration(n, content, { policyDigest: digest("policy of south's own") });
        await expect(n.lineage.connect(n.south.account).registerBundle(given))
          .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotOwn")
          .withArgs(n.keyId, n.north.id);
        const id = ethers.keccak256(encode(["bytes32", "bytes32"], [n.south.id, given.contentDigest]));
        expect((await n.lineage.artifact(id)).kind).to.equal(Kind.None);
      }
      const given = await registration(n, "bundle south", { keyId: own });
      await n.lineage.connect(n.south.account).registerBundle(given);
      await expect(registerBundle(n, "second", { keyId: own }))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotOwn")
        .withArgs(own, n.south.id);
    });

    it("says that the key is not usable before it says that it is not the caller's", async () => {
      const n = await loadFixture(ready);
      await n.keys.connect(n.north.account).retire(n.keyId);
      await expect(n.lineage.connect(n.south.account).registerBundle(await registration(n, "second")))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotUsable")
        .withArgs(n.keyId);
    });

    it("reverts for a steward that keeps no secret, whosever key it names", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.participants, "setRoles", [n.auditor.id, Role.STEWARD]);
      await expect(n.lineage.connect(n.auditor.account).registerBundle(await registration(n, "second")))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryKeyNotOwn")
        .withArgs(n.keyId, n.north.id);
    });
  });

  describe("setPolicy", () => {
    it("replaces the policy and counts its version", async () => {
      const n = await loadFixture(ready);
      const policy = digest("stricter");
      await expect(n.lineage.connect(n.north.account).setPolicy(n.bundle, policy))
        .to.emit(n.lineage, "PolicyChanged")
        .withArgs(n.bundle, policy, 2, 2, (head) => head !== ZERO);
      const stored = await n.lineage.artifact(n.bundle);
      expect([stored.policyDigest, stored.policyVersion]).to.deep.equal([policy, 2n]);
    });

    it("reverts for another steward, an unknown bundle, a result, and no policy", async () => {
      const n = await loadFixture(ready);
      const policy = digest("stricter");
      await expect(n.lineage.connect(n.south.account).setPolicy(n.bundle, policy))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryNotSteward")
        .withArgs(n.bundle, n.south.account.address);
      const jobId = await jobIn(n, "Verified");
      for (const id of [UNKNOWN, await n.lineage.derivedIdOf(jobId, Kind.Result)]) {
        await expect(n.lineage.connect(n.north.account).setPolicy(id, policy))
          .to.be.revertedWithCustomError(n.lineage, "LineageRegistryUnknown")
          .withArgs(id);
      }
      await expect(n.lineage.connect(n.north.account).setPolicy(n.bundle, ZERO))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryInvalidRegistration")
        .withArgs(ZERO);
    });
  });

  describe("setFrozen", () => {
    const bySteward = (n, frozen) => n.lineage.connect(n.north.account).setFrozen(n.bundle, frozen);
    const byCouncil = (n, frozen) => govern(n, n.lineage, "setFrozen", [n.bundle, frozen]);
    const freezeOf = async (n) => (await n.lineage.artifact(n.bundle)).frozen;

    it("lets the steward freeze and thaw", async () => {
      const n = await loadFixture(ready);
      await expect(bySteward(n, true))
        .to.emit(n.lineage, "ArtifactFrozen")
        .withArgs(n.bundle, Freeze.BySteward, 2, (head) => head !== ZERO);
      expect(await n.lineage.usability(n.bundle)).to.equal(Refusal.ArtifactFrozen);
      await bySteward(n, false);
      expect(await n.lineage.usability(n.bundle)).to.equal(Refusal.None);
    });

    it("lets only the council lift the council's freeze", async () => {
      const n = await loadFixture(ready);
      await byCouncil(n, true);
      expect(await freezeOf(n)).to.equal(Freeze.ByCouncil);
      await expect(bySteward(n, false))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryFrozenByCouncil")
        .withArgs(n.bundle);
      expect(await n.lineage.usability(n.bundle)).to.equal(Refusal.ArtifactFrozen);
      await byCouncil(n, false);
      expect(await freezeOf(n)).to.equal(Freeze.None);
    });

    it("keeps the steward's freeze when the council lifts its own", async () => {
      const n = await loadFixture(ready);
      await byCouncil(n, true);
      await bySteward(n, true);
      expect(await freezeOf(n)).to.equal(Freeze.ByCouncil);
      await byCouncil(n, false);
      expect(await freezeOf(n)).to.equal(Freeze.BySteward);
      await byCouncil(n, false);
      expect(await freezeOf(n)).to.equal(Freeze.BySteward);
    });

    it("reverts for other members, the steward's node, and an unknown artifact", async () => {
      const n = await loadFixture(ready);
      await expect(n.lineage.connect(n.south.account).setFrozen(n.bundle, true))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryNotSteward")
        .withArgs(n.bundle, n.south.account.address);
      await expect(n.lineage.connect(n.north.node).setFrozen(n.bundle, true))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotAuthority")
        .withArgs(n.north.id, n.north.node.address);
      await expect(n.lineage.connect(n.north.account).setFrozen(UNKNOWN, true))
        .to.be.revertedWithCustomError(n.lineage, "LineageRegistryNotSteward")
        .withArgs(UNKNOWN, n.north.account.address);
    });
  });

  describe("what jobs leave behind", () => {
    it("has ids that follow from the job's, and can be frozen by the council alone", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      const result = await n.lineage.derivedIdOf(jobId, Kind.Result);
      expect(result).to.equal(ethers.keccak256(encode(["bytes32", "uint8"], [jobId, Kind.Result])));
      for (const member of [n.compute, n.north]) {
        await expect(n.lineage.connect(member.account).setFrozen(result, true))
          .to.be.revertedWithCustomError(n.lineage, "LineageRegistryNotSteward")
          .withArgs(result, member.account.address);
      }
      expect(await n.lineage.isFrozen(result)).to.equal(false);
      await govern(n, n.lineage, "setFrozen", [result, true]);
      expect(await n.lineage.isFrozen(result)).to.equal(true);
      expect(await n.lineage.usability(result)).to.equal(Refusal.ArtifactMismatch);
    });
  });

  describe("usability", () => {
    it("names what stands in the way", async () => {
      const n = await loadFixture(ready);
      const usability = () => n.lineage.usability(n.bundle);
      expect(await n.lineage.usability(UNKNOWN)).to.equal(Refusal.ArtifactMismatch);
      await setStatus(n, n.north, Status.Suspended);
      expect(await usability()).to.equal(Refusal.StewardNotActive);
      await setStatus(n, n.north, Status.Active);
      await govern(n, n.participants, "setRoles", [n.north.id, Role.CUSTODIAN]);
      expect(await usability()).to.equal(Refusal.StewardNotActive);
      await govern(n, n.participants, "setRoles", [n.north.id, Role.STEWARD]);
      expect(await usability()).to.equal(Refusal.KeyDomainNotActive);
      await govern(n, n.participants, "setRoles", [n.north.id, n.north.roles]);
      expect(await usability()).to.equal(Refusal.None);
      const { retainUntil } = await n.lineage.artifact(n.bundle);
      await time.increaseTo(retainUntil - 1n);
      expect(await usability()).to.equal(Refusal.None);
      await time.increaseTo(retainUntil);
      expect(await usability()).to.equal(Refusal.RetentionPassed);
    });
  });
});
