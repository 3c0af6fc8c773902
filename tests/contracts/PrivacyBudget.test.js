import { expect } from "chai";
import { Kind, digest, govern, grant, jobIn, loadFixture, ready, registerBundle } from "./network.js";

const [A, B] = [digest("job a"), digest("job b")];
const asJobLedger = async () => {
  const n = await ready();
  await govern(n, n.manager, "grantRole", [1, n.stranger.address, 0]);
  return { ...n, ledger: n.budgets.connect(n.stranger) };
};
const accountOf = async (n) => [...(await n.budgets.account(n.bundle))].map(Number);

describe("PrivacyBudget", () => {
  describe("setBudget", () => {
    it("raises and lowers the total, but not below what is reserved and spent", async () => {
      const n = await loadFixture(asJobLedger);
      const budgets = n.budgets.connect(n.north.account);
      await n.ledger.reserve(A, n.bundle, n.grantId, 1_000);
      await n.ledger.reserve(B, n.bundle, n.grantId, 500);
      await n.ledger.settle(B);
      await expect(budgets.setBudget(n.bundle, 1_499))
        .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetBelowCommitted")
        .withArgs(n.bundle, 1_499, 1_500);
      await expect(budgets.setBudget(n.bundle, 1_500)).to.emit(n.budgets, "BudgetSet").withArgs(n.bundle, 1_500);
      expect(await accountOf(n)).to.deep.equal([1_500, 1_000, 500]);
      expect(await n.budgets.affordable(n.bundle, n.grantId, 1)).to.equal(false);
    });

    it("reverts for another steward, an unknown artifact, and a result", async () => {
      const n = await loadFixture(ready);
      const jobId = await jobIn(n, "Verified");
      for (const id of [n.bundle, A, await n.lineage.derivedIdOf(jobId, Kind.Result)]) {
        await expect(n.budgets.connect(n.south.account).setBudget(id, 1))
          .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetNotSteward")
          .withArgs(id, n.south.account.address);
      }
    });
  });

  describe("reserve", () => {
    it("sets rho aside under the bundle and the grant", async () => {
      const n = await loadFixture(asJobLedger);
      await expect(n.ledger.reserve(A, n.bundle, n.grantId, 1_000))
        .to.emit(n.budgets, "BudgetReserved")
        .withArgs(A, n.bundle, n.grantId, 1_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 1_000, 0]);
      expect(await n.budgets.committedUnder(n.grantId)).to.equal(1_000n);
    });

    it("stops at the grant's limit", async () => {
      const n = await loadFixture(asJobLedger);
      await n.ledger.reserve(A, n.bundle, n.grantId, 4_000);
      await expect(n.ledger.reserve(B, n.bundle, n.grantId, 1_001))
        .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetExceeded")
        .withArgs(n.bundle, 1_001, 1_000);
      expect(await n.budgets.affordable(n.bundle, n.grantId, 1_001)).to.equal(false);
      expect(await n.budgets.affordable(n.bundle, n.grantId, 1_000)).to.equal(true);
      await n.ledger.reserve(B, n.bundle, n.grantId, 1_000);
    });

    it("stops at the bundle's joint limit over all grants", async () => {
      const n = await loadFixture(asJobLedger);
      const wide = await grant(n, { rhoMicro: 100_000 });
      await n.ledger.reserve(A, n.bundle, n.grantId, 3_000);
      await expect(n.ledger.reserve(B, n.bundle, wide, 7_001))
        .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetExceeded")
        .withArgs(n.bundle, 7_001, 7_000);
      await n.ledger.reserve(B, n.bundle, wide, 7_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 10_000, 0]);
    });

    it("cannot be overflowed, and counts nothing for a grant on another bundle", async () => {
      const n = await loadFixture(asJobLedger);
      const most = 2n ** 64n - 1n;
      const wide = await grant(n, { rhoMicro: most });
      await n.budgets.connect(n.north.account).setBudget(n.bundle, most);
      await n.ledger.reserve(A, n.bundle, wide, most);
      await expect(n.ledger.reserve(B, n.bundle, wide, most))
        .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetExceeded")
        .withArgs(n.bundle, most, 0);
      const other = await registerBundle(n, "second");
      await n.budgets.connect(n.north.account).setBudget(other, 100);
      expect(await n.budgets.affordable(other, n.grantId, 1)).to.equal(false);
    });

    it("reverts for a job that had its reservation", async () => {
      const n = await loadFixture(asJobLedger);
      for (const end of ["settle", "refund"]) {
        const job = digest(end);
        await n.ledger.reserve(job, n.bundle, n.grantId, 10);
        await n.ledger[end](job);
        await expect(n.ledger.reserve(job, n.bundle, n.grantId, 10))
          .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetAlreadyReserved")
          .withArgs(job);
      }
    });
  });

  describe("settle and refund", () => {
    it("settling spends for good", async () => {
      const n = await loadFixture(asJobLedger);
      await n.ledger.reserve(A, n.bundle, n.grantId, 1_000);
      await expect(n.ledger.settle(A))
        .to.emit(n.budgets, "BudgetSettled")
        .withArgs(A, n.bundle, n.grantId, 1_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 0, 1_000]);
      expect(await n.budgets.committedUnder(n.grantId)).to.equal(1_000n);
    });

    it("refunding makes the rho available again", async () => {
      const n = await loadFixture(asJobLedger);
      await n.ledger.reserve(A, n.bundle, n.grantId, 1_000);
      await expect(n.ledger.refund(A))
        .to.emit(n.budgets, "BudgetRefunded")
        .withArgs(A, n.bundle, n.grantId, 1_000);
      expect(await accountOf(n)).to.deep.equal([10_000, 0, 0]);
      expect(await n.budgets.committedUnder(n.grantId)).to.equal(0n);
    });

    it("happen once, never both, and never without a reservation", async () => {
      const n = await loadFixture(asJobLedger);
      for (const first of ["settle", "refund"]) {
        const job = digest(first);
        await n.ledger.reserve(job, n.bundle, n.grantId, 10);
        await n.ledger[first](job);
        for (const second of ["settle", "refund"]) {
          await expect(n.ledger[second](job))
            .to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetNotReserved")
            .withArgs(job);
        }
      }
      for (const end of ["settle", "refund"]) {
        await expect(n.ledger[end](A)).to.be.revertedWithCustomError(n.budgets, "PrivacyBudgetNotReserved").withArgs(A);
      }
    });
  });
});
