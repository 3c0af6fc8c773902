package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ava-labs/avalanchego/utils/rpc"
)

// slowFollower reports its heights one by one, then the last for ever; 0 is no answer.
type slowFollower struct{ heights []uint64 }

func (f *slowFollower) GetHeight(context.Context, ...rpc.Option) (uint64, error) {
	height := f.heights[0]
	if len(f.heights) > 1 {
		f.heights = f.heights[1:]
	}
	if height == 0 {
		return 0, errors.New("no answer")
	}
	return height, nil
}

func TestAChangeIsOverWhenTheSlowestValidatorHasIt(t *testing.T) {
	slow := &slowFollower{heights: []uint64{11, 0, 12, 13}}
	followers := map[int]platformFollower{1: &slowFollower{heights: []uint64{13}}, 5: slow}
	if err := waitUntilLevel(context.Background(), followers); err != nil {
		t.Fatal(err)
	}
	if len(slow.heights) != 1 {
		t.Fatalf("it did not wait: %v were still to come", slow.heights)
	}
}

func TestAValidatorThatDoesNotFollowIsNamed(t *testing.T) {
	for _, stuck := range []uint64{0, 11} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		followers := map[int]platformFollower{
			1: &slowFollower{heights: []uint64{13}}, 5: &slowFollower{heights: []uint64{stuck}},
		}
		err := waitUntilLevel(ctx, followers)
		if err == nil || !strings.Contains(err.Error(), "validators [5] do not follow") {
			t.Fatalf("stuck at %d: %v", stuck, err)
		}
	}
}

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
