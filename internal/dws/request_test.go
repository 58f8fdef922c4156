package dws

import (
	"encoding/json"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"
)

// The body as the vendor's guide shows it.
func TestBody(t *testing.T) {
	for _, test := range []struct {
		request Request
		exp     int64
		want    string
	}{
		{
			Request{DocumentID: "7KJXF00VC7M4WSDD7W5TKZ8XRA", Permissions: []string{"download", "read", "write"}},
			1793769299,
			`{"allowed_documents":[{"document_id":"7KJXF00VC7M4WSDD7W5TKZ8XRA","document_permissions":["download","read","write"],"permissions":["download","read","write"]}],"exp":1793769299}`,
		},
		{
			Request{DocumentID: "d", Permissions: []string{"read"}, UserID: "ann"},
			1,
			`{"allowed_documents":[{"document_id":"d","document_permissions":["read"],"permissions":["read"]}],"exp":1,"user_id":"ann"}`,
		},
		{
			Request{DocumentID: "d", Permissions: []string{"read"}, UserID: "ann", Claims: `,"team":"blue","floor":3`, DocumentClaims: `,"collaboration_permissions":["annotations:view:all"]`, TTL: time.Hour},
			1,
			`{"allowed_documents":[{"document_id":"d","document_permissions":["read"],"permissions":["read"],"collaboration_permissions":["annotations:view:all"]}],"exp":1,"user_id":"ann","team":"blue","floor":3}`,
		},
		{
			Request{AppProvided: true, UserID: "ann", Claims: `,"team":"blue"`, TTL: time.Hour},
			1,
			`{"exp":1,"user_id":"ann","team":"blue"}`,
		},
		{Request{AppProvided: true}, 1, `{"exp":1}`},
		{
			Request{DocumentID: "a\"b\\c\nd</e>&\u2028é", Permissions: []string{`"`}, UserID: "\x00\x7f'"},
			1,
			`{"allowed_documents":[{"document_id":"a\"b\\c\nd</e>&\u2028é","document_permissions":["\""],"permissions":["\""]}],"exp":1,"user_id":"\u0000` + "\x7f" + `'"}`,
		},
	} {
		if got := string(test.request.Body(test.exp, BothNames)); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Whatever the values are, the body is the JSON that carries them unchanged.
func TestBodyCarriesEveryValue(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		runes := make([]rune, 1+random.IntN(5))
		for i := range runes {
			runes[i] = []rune("a\"\\/{}[],:\n\x00\u2028é😀<>&'")[random.IntN(18)]
		}
		return string(runes)
	}
	for range 2000 {
		documentID, user, permission, claim := text(), text(), text(), text()
		quoted, _ := json.Marshal(claim)
		a := Request{DocumentID: documentID, UserID: user, Permissions: []string{permission}, Claims: `,"c":` + string(quoted)}
		want := map[string]any{
			"allowed_documents": []any{map[string]any{"document_id": documentID, "document_permissions": []any{permission}, "permissions": []any{permission}}},
			"exp":               float64(5), "user_id": user, "c": claim,
		}
		var got map[string]any
		if err := json.Unmarshal(a.Body(5, BothNames), &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, %v\nwant %v", got, err, want)
		}
	}
}
