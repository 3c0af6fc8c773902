package main

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ava-labs/avalanchego/ids"
	"github.com/ava-labs/avalanchego/tests/fixture/tmpnet"
	"github.com/ava-labs/avalanchego/utils/rpc"
	"github.com/ava-labs/avalanchego/utils/set"
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

// rotationModel is the disk and the platform chain as far as a rotation of the validator at `turning` goes.
type rotationModel struct {
	identities []ids.NodeID
	now        membership
	turning    int
}

func (m *rotationModel) do(step rotationStep) {
	identity := m.identities[m.turning]
	switch step {
	case makeKeys:
		m.identities[m.turning] = ids.GenerateTestNodeID()
	case dismissDeparted:
		m.now.votes.Remove(departed(m.identities, m.now.votes)...)
	case placeStake:
		m.now.stakes.Add(identity)
	case giveVote:
		m.now.votes.Add(identity)
	}
}

func TestARotationInterruptedAnywhereIsEndedByRepeatingIt(t *testing.T) {
	for done := range 6 {
		model := rotationModel{now: membership{votes: set.Set[ids.NodeID]{}, stakes: set.Set[ids.NodeID]{}}, turning: 2}
		for range 5 {
			founder := ids.GenerateTestNodeID()
			model.identities = append(model.identities, founder)
			model.now.votes.Add(founder)
			model.now.stakes.Add(founder)
		}
		old := model.identities[model.turning]
		for _, step := range rotationSteps(old, model.identities, model.now)[:done] {
			model.do(step)
		}
		if done < 5 {
			for _, step := range rotationSteps(model.identities[model.turning], model.identities, model.now) {
				model.do(step)
			}
		}
		if !model.now.votes.Equals(set.Of(model.identities...)) {
			t.Fatalf("after %d steps: not just the five vote", done)
		}
		if model.identities[model.turning] == old || model.now.stakes.Len() != 6 {
			t.Fatalf("after %d steps: %d stakes", done, model.now.stakes.Len())
		}
	}
}

func TestAValidatorThatWasAddedAndHasNoVoteYetGetsOneWithTheKeysItHas(t *testing.T) {
	added, founder := ids.GenerateTestNodeID(), ids.GenerateTestNodeID()
	now := membership{votes: set.Of(founder), stakes: set.Of(founder, added)}
	left := rotationSteps(added, []ids.NodeID{founder, added}, now)
	if !slices.Equal(left, []rotationStep{startAnew, giveVote}) {
		t.Fatalf("got %v", left)
	}
}

func TestNewKeysAreOnTheDiskBeforeAnythingIsStakedOnThem(t *testing.T) {
	node := tmpnet.NewNode()
	node.DataDir = filepath.Join(t.TempDir(), dataDirPrefix+"3")
	if err := node.EnsureKeys(); err != nil {
		t.Fatal(err)
	}
	old := node.NodeID
	if err := newIdentity(node); err != nil {
		t.Fatal(err)
	}
	again := tmpnet.NewNode()
	here := tmpnet.NodeRuntimeConfig{Process: &tmpnet.ProcessRuntimeConfig{}}
	if err := again.Read(context.Background(), &tmpnet.Network{DefaultRuntimeConfig: here}, node.DataDir); err != nil {
		t.Fatal(err)
	}
	if again.NodeID == old || again.NodeID != node.NodeID {
		t.Fatalf("%s was written, %s is meant", again.NodeID, node.NodeID)
	}
}
