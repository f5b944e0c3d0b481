package safety

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// refused has for each kind of action what its rule says of one that names nothing, in a store that has nothing.
var refused = []struct {
	action model.Action
	want   string
}{
	{model.TakeTerm{}, "leads in no term"},
	{model.CreateMarker{}, "no founders"},
	{model.ReplaceMarker{}, "not forming"},
	{model.StartEtcd{}, "doesn't answer"},
	{model.StartAll{}, "not forming"},
	{model.MarkFormed{}, `the marker is ""`},
	{model.TakeBackup{}, "no healthy voter"},
	{model.PutBack{}, "isn't queued"},
	{model.EndWrites{}, "nobody says"},
	{model.StopSuperseded{}, "nobody says"},
	{model.ReportStopped{}, "nobody says"},
	{model.AddLearner{}, "doesn't answer or has data"},
	{model.Promote{}, "is no learner"},
	{model.UpdateMember{}, "tells the member list"},
	{model.RemoveMember{}, "tells the member list"},
	{model.RestartMember{}, "has no member to restart"},
	{model.StopMember{}, "has no member"},
	{model.ReleaseVolume{}, "doesn't answer"},
	{model.EnableDowngrade{}, "no one cluster serves"},
	{model.CancelDowngrade{}, "tells the member list"},
	{model.Compact{}, "tells the member list"},
	{model.Defragment{}, "tells the member list"},
	{model.Disarm{}, "tells the member list"},
	{model.SetAside{}, "doesn't have cluster"},
	{model.BeginRestore{}, "isn't queued"},
	{model.SalvageData{}, "no restore"},
	{model.ProveBackup{}, "no restore"},
	{model.StageBackup{}, "no restore"},
	{model.SafetyBackup{}, "no restore"},
	{model.StopAll{}, "no restore"},
	{model.SwitchAll{}, "no restore"},
	{model.HaltAll{}, "no restore"},
	{model.VerifyAll{}, "no restore"},
	{model.RollbackAll{}, "no restore"},
	{model.Advance{}, "no restore"},
	{model.FinishRestore{}, "can't end as"},
	{model.FailCommand{}, "isn't queued"},
}

// emptyStore is a store that fences and in which the leader holds the record, so that only the rule of an action can refuse it.
func emptyStore() *model.Observation {
	return &model.Observation{Self: "a", Store: model.Store{Fences: true, Holder: model.Holder{Mine: true}}}
}

// TestEveryActionHasARule takes the kinds of actions from the source of the model: those that say how they are fenced.
func TestEveryActionHasARule(t *testing.T) {
	have := map[string]bool{}
	for _, r := range refused {
		name := strings.TrimPrefix(fmt.Sprintf("%T", r.action), "model.")
		have[name] = true
		switch err := Check(emptyStore(), r.action, model.Policy{}); {
		case err == nil:
			t.Errorf("%s has no rule that refuses anything", name)
		case errors.Is(err, ErrUnknownAction) || !strings.Contains(err.Error(), r.want):
			t.Errorf("%s is refused with %q, want %q from its rule", name, err, r.want)
		}
	}
	kinds := actionKinds(t)
	if len(kinds) < 30 {
		t.Fatalf("only %d kinds of actions were found: %v", len(kinds), kinds)
	}
	for _, name := range kinds {
		if !have[name] {
			t.Errorf("action %s isn't in the table of this test: give it a rule in checkKind and a line here", name)
		}
	}
}

// actionKinds are the types of the model that have the method Fence, which makes them actions.
func actionKinds(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("../model")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), "../model/"+e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv == nil || fn.Name.Name != "Fence" {
				continue
			}
			if id, ok := fn.Recv.List[0].Type.(*ast.Ident); ok {
				kinds = append(kinds, id.Name)
			}
		}
	}
	return kinds
}

// novel is an action that is newer than the check.
type novel struct{ model.Action }

func TestCheckRefusesWhatItDoesNotKnow(t *testing.T) {
	for _, like := range []model.Action{model.TakeTerm{}, model.CreateMarker{}, model.Advance{}} { // however it is fenced
		o := emptyStore()
		o.Term = 1
		if err := Check(o, novel{like}, model.Policy{}); !errors.Is(err, ErrUnknownAction) {
			t.Errorf("an unknown action like %T: %v", like, err)
		}
	}
	if err := Check(emptyStore(), nil, model.Policy{}); err != nil {
		t.Errorf("doing nothing: %v", err)
	}
}

// TestEveryFenceIsHeld: no action that can't be taken back passes without the leader record, whatever its own rule says.
func TestEveryFenceIsHeld(t *testing.T) {
	for _, r := range refused {
		o := emptyStore()
		o.Store.Holder.Mine = false
		err := Check(o, r.action, model.Policy{})
		held := err != nil && strings.Contains(err.Error(), "without holding the store's leader record")
		if fenced := r.action.Fence() != model.FenceNone; held != fenced {
			t.Errorf("%T: fenced %t, refused with %v", r.action, fenced, err)
		}
	}
}

// TestFencesOfTheDesign: section 5 of docs/design.md names what the store fences, and what it doesn't, as the code has it.
func TestFencesOfTheDesign(t *testing.T) {
	page, err := os.ReadFile("../../../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "\n## 5. Leadership\n")
	section, _, _ = strings.Cut(section, "\n## 6. ")
	section = strings.Join(strings.Fields(section), " ")
	for sentence, x := range map[string]struct {
		fenced  bool
		actions []model.Action
	}{
		"can't be undone (form, restart or stop a member, begin and execute a restore or a recovery)": {true, []model.Action{
			model.CreateMarker{}, model.StartAll{}, model.RestartMember{}, model.StopMember{}, model.BeginRestore{}, model.SalvageData{},
			model.StopAll{}, model.SwitchAll{}, model.Advance{}}},
		"The store doesn't fence adding, promoting and removing a member.": {false, []model.Action{
			model.AddLearner{}, model.Promote{}, model.RemoveMember{}}},
	} {
		if !ok || !strings.Contains(section, sentence) {
			t.Errorf("docs/design.md, section 5, doesn't say: %s", sentence)
		}
		for _, a := range x.actions {
			if fenced := a.Fence() != model.FenceNone; fenced != x.fenced {
				t.Errorf("%T: fenced %t; docs/design.md says: %s", a, fenced, sentence)
			}
		}
	}
	for exponent, term := range map[int]cluster.Term{48: cluster.MaxTerm, 24: cluster.MaxTermJump} {
		if term != 1<<exponent || !strings.Contains(section, fmt.Sprintf("2^%d", exponent)) {
			t.Errorf("docs/design.md, section 5, doesn't say 2^%d, or the code has %d", exponent, term)
		}
	}
}
