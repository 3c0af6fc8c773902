import { expect } from "chai";
import { PURPOSE, ZERO, anchor, deployed, digest, label, loadFixture, time } from "./network.js";

describe("ConsentRegistry", () => {
  describe("anchorEpoch", () => {
    it("puts the epoch in force and replaces the one before", async () => {
      const n = await loadFixture(deployed);
      expect((await n.consents.currentEpoch(n.north.id, PURPOSE)).epoch).to.equal(0n);
      for (const epoch of [1, 2]) {
        await expect(anchor(n, epoch, 50))
          .to.emit(n.consents, "ConsentEpochAnchored")
          .withArgs(
            n.north.id, PURPOSE, epoch, digest(`root ${epoch}`), digest(`status ${epoch}`), 50, epoch,
            (head) => head !== ZERO,
          );
        expect(await n.consents.currentEpoch(n.north.id, PURPOSE)).to.deep.equal([
          BigInt(epoch), BigInt(await time.latest()), 50n, digest(`root ${epoch}`), digest(`status ${epoch}`),
        ]);
      }
    });

    it("keeps one series per steward and scope", async () => {
      const n = await loadFixture(deployed);
      await anchor(n, 1, 50);
      await anchor(n, 1, 20, n.south);
      const other = label("other-purpose");
      await n.consents.connect(n.north.account).anchorEpoch(other, 1, digest("r"), digest("s"), 10);
      expect((await n.consents.currentEpoch(n.south.id, PURPOSE)).cohortFloor).to.equal(20n);
      expect((await n.consents.currentEpoch(n.north.id, other)).cohortFloor).to.equal(10n);
      expect((await n.consents.currentEpoch(n.north.id, PURPOSE)).cohortFloor).to.equal(50n);
    });

    it("reverts when epochs repeat, go back or leave a gap", async () => {
      const n = await loadFixture(deployed);
      await expect(anchor(n, 2, 50))
        .to.be.revertedWithCustomError(n.consents, "ConsentRegistryEpochNotNext")
        .withArgs(1, 2);
      await anchor(n, 1, 50);
      await anchor(n, 2, 50);
      for (const epoch of [0, 1, 2, 4]) {
        await expect(anchor(n, epoch, 50))
          .to.be.revertedWithCustomError(n.consents, "ConsentRegistryEpochNotNext")
          .withArgs(3, epoch);
      }
    });

    it("reverts for a zero scope, root or digest", async () => {
      const n = await loadFixture(deployed);
      const some = digest("some");
      for (const [scope, root, status] of [[ZERO, some, some], [PURPOSE, ZERO, some], [PURPOSE, some, ZERO]]) {
        await expect(n.consents.connect(n.north.account).anchorEpoch(scope, 1, root, status, 10))
          .to.be.revertedWithCustomError(n.consents, "ConsentRegistryInvalidEpoch")
          .withArgs(scope);
      }
    });

    it("takes cohort floors on the scale only, so that no exact count is told", async () => {
      const n = await loadFixture(deployed);
      for (const floor of [1, 5, 9, 11, 15, 40, 99, 101, 250, 4_000_000_000, 4_294_967_295]) {
        await expect(anchor(n, 1, floor))
          .to.be.revertedWithCustomError(n.consents, "ConsentRegistryCohortNotOnScale")
          .withArgs(floor);
      }
      let epoch = 0;
      for (const floor of [0, 10, 20, 50, 100, 200, 500, 1000, 1_000_000_000, 2_000_000_000]) {
        await anchor(n, ++epoch, floor);
      }
      expect((await n.consents.currentEpoch(n.north.id, PURPOSE)).epoch).to.equal(BigInt(epoch));
    });
  });
});
