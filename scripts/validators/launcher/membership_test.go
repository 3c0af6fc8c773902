package main

import "testing"

func TestDepartedStakesStayATenthWhileAllRotateInTurn(t *testing.T) {
	live := []uint64{founderStake, founderStake, founderStake, founderStake, founderStake}
	var departed, spent uint64
	for turn := range 4 * len(live) {
		number := turn % len(live)
		departed += live[number]
		live[number] = 0
		var staying uint64
		for _, stake := range live {
			staying += stake
		}
		live[number] = stakeBeside(departed, staying)
		spent += live[number]
		if live[number] < founderStake {
			t.Fatalf("turn %d: %d is less than the platform takes", turn, live[number])
		}
		if all := departed + staying + live[number]; departed*departedShare > all {
			t.Fatalf("turn %d: %d of %d has left", turn, departed, all)
		}
	}
	if spent > platformFunds {
		t.Fatalf("four rounds cost %d, the key holds %d", spent, platformFunds)
	}
}

func TestNewcomerStakesLikeAFounderWhereNobodyHasLeft(t *testing.T) {
	if stake := stakeBeside(0, 5*founderStake); stake != founderStake {
		t.Fatalf("got %d", stake)
	}
}
