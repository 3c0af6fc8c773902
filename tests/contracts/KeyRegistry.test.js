import { expect } from "chai";
import {
  KeyStatus, PARAMETERS, Role, Status, ZERO, deployed, digest, govern, loadFixture, ready, setStatus, time,
} from "./network.js";

const KEY = digest("key south");
const PUBLIC = digest("public south");
const register = (n, keyId = KEY, parametersId = PARAMETERS, publicDigest = PUBLIC) =>
  n.keys.connect(n.south.account).registerKeyDomain(keyId, parametersId, publicDigest);

describe("KeyRegistry", () => {
  describe("allowParameters", () => {
    it("takes 128 bits and more", async () => {
      const n = await loadFixture(deployed);
      const other = digest("bgv");
      await expect(govern(n, n.keys, "allowParameters", [other, 192]))
        .to.emit(n.keys, "ParametersAllowed")
        .withArgs(other, 192);
      expect(await n.keys.isAllowed(other)).to.equal(true);
    });

    it("reverts below 128 bits", async () => {
      const n = await loadFixture(deployed);
      const weak = digest("weak");
      await expect(govern(n, n.keys, "allowParameters", [weak, 127]))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs(1, n.keys.interface.encodeErrorResult("KeyRegistryWeakParameters", [weak, 127]));
      expect(await n.keys.isAllowed(weak)).to.equal(false);
    });
  });

  describe("disallowParameters", () => {
    it("stops new domains and leaves the old ones alone", async () => {
      const n = await loadFixture(ready);
      await expect(govern(n, n.keys, "disallowParameters", [PARAMETERS]))
        .to.emit(n.keys, "ParametersDisallowed")
        .withArgs(PARAMETERS);
      await expect(register(n))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryParametersNotAllowed")
        .withArgs(PARAMETERS);
      expect(await n.keys.isUsable(n.keyId)).to.equal(true);
    });

    it("reverts for parameters that are not on the list", async () => {
      const n = await loadFixture(deployed);
      await expect(govern(n, n.keys, "disallowParameters", [KEY]))
        .to.be.revertedWithCustomError(n.council, "MemberCouncilCallFailed")
        .withArgs(1, n.keys.interface.encodeErrorResult("KeyRegistryParametersNotAllowed", [KEY]));
    });
  });

  describe("registerKeyDomain", () => {
    it("stores the domain as active under the caller's organisation", async () => {
      const n = await loadFixture(deployed);
      await expect(register(n))
        .to.emit(n.keys, "KeyDomainRegistered")
        .withArgs(KEY, n.south.id, PARAMETERS, PUBLIC, 1);
      const at = await time.latest();
      expect(await n.keys.keyDomain(KEY)).to.deep.equal([n.south.id, PARAMETERS, PUBLIC, 1n, BigInt(at), KeyStatus.Active]);
      expect(await n.keys.isUsable(KEY)).to.equal(true);
    });

    it("numbers the key domains of each custodian", async () => {
      const n = await loadFixture(deployed);
      await register(n);
      const second = digest("second key");
      await register(n, second);
      expect((await n.keys.keyDomain(second)).epoch).to.equal(2n);
      const other = digest("key north");
      await n.keys.connect(n.north.account).registerKeyDomain(other, PARAMETERS, PUBLIC);
      expect((await n.keys.keyDomain(other)).epoch).to.equal(1n);
    });

    it("reverts for a zero key id or digest", async () => {
      const n = await loadFixture(deployed);
      for (const [keyId, publicDigest] of [[ZERO, PUBLIC], [KEY, ZERO]]) {
        await expect(register(n, keyId, PARAMETERS, publicDigest))
          .to.be.revertedWithCustomError(n.keys, "KeyRegistryInvalidDomain")
          .withArgs(keyId);
      }
    });

    it("reverts when the key id is known", async () => {
      const n = await loadFixture(ready);
      await expect(register(n, n.keyId))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryAlreadyKnown")
        .withArgs(n.keyId);
    });
  });

  describe("retire", () => {
    it("ends the domain for new bundles and jobs, once", async () => {
      const n = await loadFixture(ready);
      const retire = () => n.keys.connect(n.north.account).retire(n.keyId);
      await expect(retire()).to.emit(n.keys, "KeyStatusChanged").withArgs(n.keyId, KeyStatus.Retired);
      expect(await n.keys.isUsable(n.keyId)).to.equal(false);
      await expect(retire())
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryNotActive")
        .withArgs(n.keyId, KeyStatus.Retired);
    });

    it("reverts for another custodian and for an unknown key", async () => {
      const n = await loadFixture(ready);
      await expect(n.keys.connect(n.south.account).retire(n.keyId))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryNotCustodian")
        .withArgs(n.keyId, n.south.account.address);
      await expect(n.keys.connect(n.south.account).retire(KEY))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryUnknown")
        .withArgs(KEY);
    });
  });

  describe("markCompromised", () => {
    it("is final, also after retiring", async () => {
      const n = await loadFixture(ready);
      const keys = n.keys.connect(n.north.account);
      await keys.retire(n.keyId);
      await expect(keys.markCompromised(n.keyId))
        .to.emit(n.keys, "KeyStatusChanged")
        .withArgs(n.keyId, KeyStatus.Compromised);
      for (const again of [keys.markCompromised(n.keyId), keys.retire(n.keyId)]) {
        await expect(again)
          .to.be.revertedWithCustomError(n.keys, "KeyRegistryNotActive")
          .withArgs(n.keyId, KeyStatus.Compromised);
      }
    });

    it("may be done by the council", async () => {
      const n = await loadFixture(ready);
      await govern(n, n.keys, "markCompromised", [n.keyId]);
      expect((await n.keys.keyDomain(n.keyId)).status).to.equal(KeyStatus.Compromised);
    });

    it("reverts for other members, the custodian's node, and an unknown key", async () => {
      const n = await loadFixture(ready);
      await expect(n.keys.connect(n.south.account).markCompromised(n.keyId))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryNotCustodian")
        .withArgs(n.keyId, n.south.account.address);
      await expect(n.keys.connect(n.north.node).markCompromised(n.keyId))
        .to.be.revertedWithCustomError(n.participants, "ParticipantRegistryNotAuthority")
        .withArgs(n.north.id, n.north.node.address);
      await expect(n.keys.connect(n.south.account).markCompromised(KEY))
        .to.be.revertedWithCustomError(n.keys, "KeyRegistryUnknown")
        .withArgs(KEY);
    });
  });

  it("calls no domain usable whose custodian is suspended or lost the role", async () => {
    const n = await loadFixture(ready);
    await setStatus(n, n.north, Status.Suspended);
    expect(await n.keys.isUsable(n.keyId)).to.equal(false);
    await setStatus(n, n.north, Status.Active);
    expect(await n.keys.isUsable(n.keyId)).to.equal(true);
    await govern(n, n.participants, "setRoles", [n.north.id, Role.STEWARD]);
    expect(await n.keys.isUsable(n.keyId)).to.equal(false);
  });
});
