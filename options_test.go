package viewersession

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestMergedClaimsLeaveTheHandlersAlone(t *testing.T) {
	raw := func(text string) (set map[string]json.RawMessage) {
		if err := json.Unmarshal([]byte(text), &set); err != nil {
			t.Fatal(err)
		}
		return set
	}
	base := raw(`{"a": 1, "b": 2}`)
	merged := mergeClaims(base, raw(`{"b": 3, "c": 4}`))
	if want := raw(`{"a": 1, "b": 3, "c": 4}`); !reflect.DeepEqual(merged, want) {
		t.Errorf("got %s", merged)
	}
	if want := raw(`{"a": 1, "b": 2}`); !reflect.DeepEqual(base, want) {
		t.Errorf("the handler's are %s now", base)
	}
	if got := mergeClaims(nil, nil); len(got) != 0 {
		t.Errorf("got %s", got)
	}
}
