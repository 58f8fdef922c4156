package dws

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

var testNow = time.Unix(1_800_000_000, 0)

func TestReadTokenExp(t *testing.T) {
	const asked = 1_800_003_600
	const notNumber = "the token's exp is not a number"
	for _, test := range []struct {
		payload string
		exp     int64
		found   bool
		err     string
	}{
		{`{"exp": 1800003600}`, asked, true, ""},
		{`{"exp": 1800000001}`, 1800000001, true, ""},
		{`{"exp": 1800001000}`, 1800001000, true, ""},
		{`{"exp":1800001000,"server_url":"https://a/","x":[1]}`, 1800001000, true, ""},

		// Missing, or null: the one asked for.
		{`{}`, asked, false, ""},
		{`{"exp": null}`, asked, false, ""},
		{`{"EXP": 1800001000}`, asked, false, ""},
		{`{"Exp": 5, "iat": 1800000000}`, asked, false, ""},

		// Bounded by the one asked for.
		{`{"exp": 1800003601}`, asked, true, ""},
		{`{"exp": 9223372036854775807}`, asked, true, ""},
		{`{"exp": 99999999999999999999999999}`, asked, true, ""},
		{`{"exp": 1e300}`, asked, true, ""},
		{`{"exp": 1800003599.999}`, 1800003599, true, ""},

		// Fractions, which RFC 7519 allows.
		{`{"exp": 1800001000.75}`, 1800001000, true, ""},
		{`{"exp": 1.800001e9}`, 1800001000, true, ""},

		// Past.
		{`{"exp": 1800000000}`, 0, false, "the token has expired already, 0 s ago; check this machine's clock"},
		{`{"exp": 1799999990}`, 0, false, "the token has expired already, 10 s ago; check this machine's clock"},
		{`{"exp": 0}`, 0, false, "the token has expired already, 1800000000 s ago; check this machine's clock"},
		{`{"exp": -1}`, 0, false, "the token has expired already, 1800000001 s ago; check this machine's clock"},
		{`{"exp": -1e300}`, 0, false, fmt.Sprintf("the token has expired already, %.0f s ago; check this machine's clock", 1e300)},

		// Other shapes.
		{`{"exp": "1800001000"}`, 0, false, notNumber},
		{`{"exp": ""}`, 0, false, notNumber},
		{`{"exp": true}`, 0, false, notNumber},
		{`{"exp": [1800001000]}`, 0, false, notNumber},
		{`{"exp": {}}`, 0, false, notNumber},
		{`{"exp": 1e999}`, 0, false, notNumber},
	} {
		facts, err := ReadToken(dwstest.JWTWithPayload(test.payload), &Request{DocumentID: "doc"}, asked, testNow)
		exp, found := facts.Exp, facts.HasExp
		if test.err != "" {
			if err == nil || err.Error() != test.err {
				t.Errorf("%s: got %d, %v\nwant %s", test.payload, exp, err, test.err)
			}
			continue
		}
		if exp != test.exp || found != test.found || err != nil {
			t.Errorf("%s: got %d, %v, %v, want %d, %v", test.payload, exp, found, err, test.exp, test.found)
		}
	}
}

// A fraction of the second that has begun may lie in the past, too.
func TestReadTokenThatExpiredWithinThisSecond(t *testing.T) {
	now := testNow.Add(700 * time.Millisecond)
	if facts, err := ReadToken(dwstest.JWTWithPayload(`{"exp": 1800000000.5}`), &Request{DocumentID: "doc"}, 1_800_003_600, now); err == nil {
		t.Errorf("a token that expired 200 ms ago is taken, until %d", facts.Exp)
	}
}

// What is found good must be good for something: never a token whose exp, as
// it is kept, lies in the past.
func TestReadTokenNeverGivesAnExpThatIsPast(t *testing.T) {
	for _, fraction := range []float64{0, 0.001, 0.25, 0.5, 0.75, 0.999} {
		for _, late := range []time.Duration{0, time.Millisecond, 500 * time.Millisecond, 999 * time.Millisecond} {
			for seconds := range 3 {
				now := testNow.Add(late)
				payload := fmt.Sprintf(`{"exp": %.3f}`, float64(testNow.Unix())+float64(seconds)+fraction)
				facts, err := ReadToken(dwstest.JWTWithPayload(payload), &Request{DocumentID: "doc"}, 1_800_003_600, now)
				if err == nil && !time.Unix(facts.Exp, 0).After(now) {
					t.Fatalf("%s is taken %v into the second, and expired at once", payload, late)
				}
			}
		}
	}
}

func TestReadTokenShape(t *testing.T) {
	const alphabet = "the token has an empty part or bytes that no JWT has"
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1800001000}`))
	for _, test := range []struct{ name, jwt, want string }{
		{"good", "a." + payload + ".c", ""},
		{"base64url's own letters", "-_." + payload + ".-_", ""},
		{"nothing", "", "the token has 1 parts; a JWT has 3"},
		{"one part", payload, "the token has 1 parts; a JWT has 3"},
		{"two parts", "a." + payload, "the token has 2 parts; a JWT has 3"},
		{"four parts", "a." + payload + ".c.d", "the token has 4 parts; a JWT has 3"},
		{"encrypted", "a.b.c.d.e", "the token has 5 parts; a JWT has 3"},
		{"no header", "." + payload + ".c", alphabet},
		{"no payload", "a..c", alphabet},
		{"no signature", "a." + payload + ".", alphabet},
		{"line break", "a." + payload + ".c\r\nX-Admin: 1", alphabet},
		{"line break at the end", "a." + payload + ".c\n", alphabet},
		{"blank in front", " a." + payload + ".c", alphabet},
		{"blank inside", "a." + payload[:4] + " " + payload[4:] + ".c", alphabet},
		{"semicolon", "a." + payload + ".c;b=d", alphabet},
		{"comma", "a." + payload + ".c,d", alphabet},
		{"quote", `a.` + payload + `.c"`, alphabet},
		{"NUL", "a." + payload + ".c\x00", alphabet},
		{"padding", "a." + payload + "=.c", alphabet},
		{"plain base64", "a+/." + payload + ".c", alphabet},
		{"not ASCII", "a." + payload + ".cé", alphabet},
		{"a letter that folds to ASCII", "a." + payload + ".\u212a", alphabet},
		{"a rune whose low byte is a letter", "a." + payload + ".\u0161", alphabet},
		{"invalid UTF-8", "a." + payload + ".c\xff", alphabet},
		{"DEL", "a." + payload + ".c\x7f", alphabet},
		{"payload of a wrong length", "a.abcde.c", "the token's payload is not base64url"},
		{"payload is text", "a." + base64.RawURLEncoding.EncodeToString([]byte("hello")) + ".c", "the token's payload is not a JSON object"},
		{"payload is empty JSON", "a." + base64.RawURLEncoding.EncodeToString([]byte(" ")) + ".c", "the token's payload is not a JSON object"},
		{"payload is an array", "a." + base64.RawURLEncoding.EncodeToString([]byte(`[{"exp":1800001000}]`)) + ".c", "the token's payload is not a JSON object"},
		{"payload is a number", "a." + base64.RawURLEncoding.EncodeToString([]byte("1800001000")) + ".c", "the token's payload is not a JSON object"},
		{"payload is null", "a." + base64.RawURLEncoding.EncodeToString([]byte("null")) + ".c", "the token's payload is not a JSON object"},
		{"payload is cut short", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1800001000`)) + ".c", "the token's payload is not a JSON object"},
		{"payload with permissions twice", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"permissions":["write"],"permissions":["read"]}`)) + ".c", "the token's payload has a member twice"},
		{"payload with a document's permissions twice", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"allowed_documents":[{"permissions":["write"],"permissions":["read"]}]}`)) + ".c", "the token's payload has a member twice"},
		{"payload with a user twice", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"user_id":"ann","\u0075ser_id":"ann"}`)) + ".c", "the token's payload has a member twice"},
		{"payload is followed by more", "a." + base64.RawURLEncoding.EncodeToString([]byte(`{"exp":1800001000}{}`)) + ".c", "the token's payload is not a JSON object"},
		{"largest", "a." + payload + "." + strings.Repeat("s", 8192-3-len(payload)), ""},
		{"too large", "a." + payload + "." + strings.Repeat("s", 8192-2-len(payload)), "the token has 8193 bytes, more than the 8192 that are accepted"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := ReadToken(test.jwt, &Request{DocumentID: "doc"}, 1_800_003_600, testNow)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestEveryByteInAToken(t *testing.T) {
	payload := base64.RawURLEncoding.EncodeToString([]byte(`{}`))
	for c := range 256 {
		_, err := ReadToken("a."+payload+".x"+string([]byte{byte(c)})+"y", &Request{DocumentID: "doc"}, 1_800_003_600, testNow)
		allowed := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_'
		if (err == nil) != allowed {
			t.Errorf("%#x: %v", c, err)
		}
	}
}

func TestReadTokenForSomebodyElse(t *testing.T) {
	const document = "the token is for another document than the one asked for"
	const user = "the token is for another user than the one asked for"
	const noID, noUser = "the token's document_id is not a string", "the token's user_id is not a string"
	const noList, noObject = "the token's allowed_documents is not a list", "an entry of the token's allowed_documents is not an object"
	for _, test := range []struct{ payload, want string }{
		{`{}`, ""},
		{`{"allowed_documents": [{"document_id": "doc"}], "user_id": "ann"}`, ""},
		{`{"allowed_documents": [{"document_id": "DOC"}]}`, ""},
		{`{"document_id": "doc"}`, ""},
		{`{"allowed_documents": null, "user_id": null, "document_id": null}`, ""},
		{`{"allowed_documents": []}`, ""},
		{`{"allowed_documents": [{"document_permissions": ["read"]}]}`, ""},
		{`{"sub": "bob"}`, ""},
		{`{"document_id": "doc2"}`, document},
		{`{"document_id": "do"}`, document},
		{`{"allowed_documents": [{"document_id": "other"}]}`, document},
		{`{"allowed_documents": [{"document_id": "doc"}, {"document_id": "other"}]}`, document},
		{`{"document_id": "doc", "allowed_documents": [{"document_id": "other"}]}`, document},
		{`{"user_id": "bob"}`, user},
		{`{"user_id": "anna"}`, user},
		{`{"user_id": ""}`, user},
		{`{"user_id": "a n n"}`, user},

		// An API may trim names and fold their case.
		{`{"user_id": "Ann"}`, ""},
		{`{"user_id": "ann "}`, ""},
		{`{"user_id": "\tANN\u00a0"}`, ""},

		// What is there in a form that is not known is held against the token.
		{`{"allowed_documents": "doc"}`, noList},
		{`{"allowed_documents": {"document_id": "doc"}}`, noList},
		{`{"allowed_documents": [{"document_id": "doc"}, "doc"]}`, noObject},
		{`{"allowed_documents": ["doc", {"document_id": "other"}]}`, noObject},
		{`{"allowed_documents": [null]}`, noObject},
		{`{"allowed_documents": [["doc"]]}`, noObject},
		{`{"allowed_documents": [{"document_id": 5}]}`, noID},
		{`{"allowed_documents": [{"document_id": ["doc"]}]}`, noID},
		{`{"document_id": {"document_id": "doc"}}`, noID},
		{`{"document_id": ""}`, document},
		{`{"user_id": ["ann"]}`, noUser},
		{`{"user_id": 5}`, noUser},
		{`{"user_id": {"id": "ann"}}`, noUser},
		{`{"user_id": false}`, noUser},
	} {
		_, err := ReadToken(dwstest.JWTWithPayload(test.payload), &Request{DocumentID: "doc", UserID: "ann"}, 1_800_003_600, testNow)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.payload, got, test.want)
		}
	}
	if _, err := ReadToken(dwstest.JWTWithPayload(`{"user_id": "bob"}`), &Request{DocumentID: "doc"}, 1_800_003_600, testNow); err == nil {
		t.Error("a token of bob's is taken although no user was asked for")
	}
}

// A token that was asked for without a document has none. What else it says is
// looked at as ever, but for permissions, since none were asked for.
func TestReadTokenOfAppProvided(t *testing.T) {
	const document = "the token names a document, although none was asked for"
	for payload, want := range map[string]string{
		`{}`: "",
		`{"user_id": "ann", "permissions": ["write", "download"]}`: "",
		`{"permissions": "all", "document_permissions": {"a": 1}}`: "",
		`{"allowed_documents": [], "document_id": null}`:           "",
		`{"allowed_documents": null}`:                              "",
		`{"allowed_documents": [{"document_id": "doc"}]}`:          document,
		`{"allowed_documents": [{"document_id": ""}]}`:             document,
		`{"allowed_documents": [{}]}`:                              document,
		`{"allowed_documents": ["*"]}`:                             document,
		`{"document_id": "doc"}`:                                   document,
		`{"document_id": ""}`:                                      document,
		`{"document_id": 5}`:                                       document,
		`{"allowed_documents": "*"}`:                               "the token's allowed_documents is not a list",
		`{"user_id": "bob"}`:                                       "the token is for another user than the one asked for",
	} {
		_, err := ReadToken(dwstest.JWTWithPayload(payload), &Request{AppProvided: true, UserID: "ann"}, 1_800_003_600, testNow)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: got %q, want %q", payload, got, want)
		}
	}
}

// Two users may differ in case alone, and two documents. A token that names the
// other spelling is good for the request that it was minted for, and for no one
// else's.
func TestReadTokenInAnotherCase(t *testing.T) {
	for user, want := range map[string]bool{"ann": false, " ann": false, "Ann": true, "ANN ": true} {
		facts, err := ReadToken(dwstest.JWTWithPayload(`{"user_id": "`+user+`"}`), &Request{DocumentID: "doc", UserID: "ann"}, 1_800_003_600, testNow)
		if err != nil || facts.OtherCase != want {
			t.Errorf("%q: got %v, %v, want %v", user, facts.OtherCase, err, want)
		}
	}
	for document, want := range map[string]bool{"doc": false, "Doc": true, "DOC": true} {
		for _, payload := range []string{`{"document_id": "` + document + `"}`, `{"allowed_documents": [{"document_id": "` + document + `"}]}`} {
			facts, err := ReadToken(dwstest.JWTWithPayload(payload), &Request{DocumentID: "doc"}, 1_800_003_600, testNow)
			if err != nil || facts.OtherCase != want {
				t.Errorf("%s: got %v, %v, want %v", payload, facts.OtherCase, err, want)
			}
		}
	}
}

// Whatever an API sends as a token: it is refused, or it expires in the future
// and not after what was asked for, and holds no byte that a header or a cookie
// could not carry.
func FuzzReadToken(f *testing.F) {
	for _, seed := range []string{
		dwstest.JWT(map[string]any{"exp": 1_800_003_600}), dwstest.JWT(map[string]any{}), dwstest.JWT(map[string]any{"exp": nil}),
		dwstest.JWT(map[string]any{"exp": 1e300}), dwstest.JWT(map[string]any{"exp": -1}), dwstest.JWT(map[string]any{"exp": "soon"}),
		dwstest.JWT(map[string]any{"exp": 1_800_000_000.5}), dwstest.JWT(map[string]any{"document_id": "other"}),
		dwstest.JWT(map[string]any{"allowed_documents": []any{map[string]any{"document_id": "doc"}, "x", nil}}),
		"a.b.c", "..", "", "a.W10.c", "a.bnVsbA.c", strings.Repeat("a", 9000),
	} {
		f.Add(seed, int64(0))
		f.Add(seed, int64(999_999_999))
	}
	f.Fuzz(func(t *testing.T, jwt string, nanos int64) {
		now := time.Unix(1_800_000_000, nanos%1e9)
		const askedExp = 1_800_003_600
		facts, err := ReadToken(jwt, &Request{DocumentID: "doc", UserID: "user"}, askedExp, now)
		if err != nil {
			return
		}
		exp := facts.Exp
		if !time.Unix(exp, 0).After(now) || exp > askedExp {
			t.Errorf("%q: exp %d at %s", jwt, exp, now)
		}
		if strings.ContainsFunc(jwt, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`;,"\`, r) }) || len(jwt) > MaxTokenBytes {
			t.Errorf("%q is accepted", jwt)
		}
	})
}
