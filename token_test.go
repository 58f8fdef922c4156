package viewersession

import (
	"encoding/base64"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

var testNow = time.Unix(1_800_000_000, 0)

// jwtWithPayload returns a token with this text as its payload.
func jwtWithPayload(payload string) string {
	return "eyJhbGciOiJIUzI1NiJ9." + base64.RawURLEncoding.EncodeToString([]byte(payload)) + ".c2lnbmF0dXJl"
}

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
		facts, err := readToken(jwtWithPayload(test.payload), &ask{documentID: "doc"}, asked, testNow)
		exp, found := facts.exp, facts.hasExp
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
	if facts, err := readToken(jwtWithPayload(`{"exp": 1800000000.5}`), &ask{documentID: "doc"}, 1_800_003_600, now); err == nil {
		t.Errorf("a token that expired 200 ms ago is taken, until %d", facts.exp)
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
				facts, err := readToken(jwtWithPayload(payload), &ask{documentID: "doc"}, 1_800_003_600, now)
				if err == nil && newTestToken("", "", facts.exp, 1_800_003_600, now).freshness(clock.At(now), 0) == expired {
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
			_, err := readToken(test.jwt, &ask{documentID: "doc"}, 1_800_003_600, testNow)
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
		_, err := readToken("a."+payload+".x"+string([]byte{byte(c)})+"y", &ask{documentID: "doc"}, 1_800_003_600, testNow)
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
		_, err := readToken(jwtWithPayload(test.payload), &ask{documentID: "doc", userID: "ann"}, 1_800_003_600, testNow)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.payload, got, test.want)
		}
	}
	if _, err := readToken(jwtWithPayload(`{"user_id": "bob"}`), &ask{documentID: "doc"}, 1_800_003_600, testNow); err == nil {
		t.Error("a token of bob's is taken although no user was asked for")
	}
}

// Two users may differ in case alone, and two documents. A token that names the
// other spelling is good for the request that it was minted for, and for no one
// else's.
func TestReadTokenInAnotherCase(t *testing.T) {
	for user, want := range map[string]bool{"ann": false, " ann": false, "Ann": true, "ANN ": true} {
		facts, err := readToken(jwtWithPayload(`{"user_id": "`+user+`"}`), &ask{documentID: "doc", userID: "ann"}, 1_800_003_600, testNow)
		if err != nil || facts.ownOnly != want {
			t.Errorf("%q: got %v, %v, want %v", user, facts.ownOnly, err, want)
		}
	}
	for document, want := range map[string]bool{"doc": false, "Doc": true, "DOC": true} {
		for _, payload := range []string{`{"document_id": "` + document + `"}`, `{"allowed_documents": [{"document_id": "` + document + `"}]}`} {
			facts, err := readToken(jwtWithPayload(payload), &ask{documentID: "doc"}, 1_800_003_600, testNow)
			if err != nil || facts.ownOnly != want {
				t.Errorf("%s: got %v, %v, want %v", payload, facts.ownOnly, err, want)
			}
		}
	}
}

// steady returns a token without spread.
func steady(life, asked time.Duration) *token {
	t := newTestToken("key", "jwt", testNow.Add(life).Unix(), testNow.Add(asked).Unix(), testNow)
	t.spread = 1
	return t
}

func TestFreshness(t *testing.T) {
	for _, test := range []struct {
		name                 string
		life, asked          time.Duration
		minRemaining         time.Duration
		fresh, due, shortEnd time.Duration // what is left at the last moment of each
	}{
		// Renewal is due halfway between the full life and min_remaining.
		{"an hour", time.Hour, time.Hour, 15 * time.Minute, 37*time.Minute + 30*time.Second + 1, 15 * time.Minute, 1},
		{"half of it", time.Hour, time.Hour, 30 * time.Minute, 45*time.Minute + 1, 30 * time.Minute, 1},
		{"a day", 24 * time.Hour, 24 * time.Hour, 6 * time.Hour, 15*time.Hour + 1, 6 * time.Hour, 1},
		{"a minute", time.Minute, time.Minute, 15 * time.Second, 37500*time.Millisecond + 1, 15 * time.Second, 1},

		// The API granted less: everything shrinks in proportion.
		{"a third granted", 20 * time.Minute, time.Hour, 15 * time.Minute, 12*time.Minute + 30*time.Second + 1, 5 * time.Minute, 1},
		{"a minute of an hour", time.Minute, time.Hour, 15 * time.Minute, 37500*time.Millisecond + 1, 15 * time.Second, 1},
		{"ten seconds of a day", 10 * time.Second, 24 * time.Hour, 12 * time.Hour, 7500*time.Millisecond + 1, 5 * time.Second, 1},

		// It granted more than it was asked for, and readToken has cut that.
		{"no more than asked", time.Hour, 30 * time.Minute, 15 * time.Minute, 37*time.Minute + 30*time.Second + 1, 15 * time.Minute, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			token := steady(test.life, test.asked)
			for _, step := range []struct {
				left time.Duration
				want freshness
			}{
				{test.life, fresh},
				{test.fresh, fresh},
				{test.fresh - 1, due},
				{test.due, due},
				{test.due - 1, short},
				{test.shortEnd, short},
				{0, expired},
				{-1, expired},
				{-time.Hour, expired},
			} {
				now := testNow.Add(test.life - step.left)
				if got := token.freshness(clock.At(now), test.minRemaining); got != step.want {
					t.Errorf("with %v left: got %d, want %d", step.left, got, step.want)
				}
			}
		})
	}
}

func TestFreshnessOfNoToken(t *testing.T) {
	var none *token
	if got := none.freshness(clock.At(testNow), 0); got != expired {
		t.Errorf("got %d", got)
	}
}

// The clock was set back or forward while the process was running.
func TestFreshnessFollowsTheWallClock(t *testing.T) {
	start := time.Now() // with a monotonic reading
	token := newTestToken("key", "jwt", start.Add(time.Hour).Unix(), start.Add(time.Hour).Unix(), start)
	token.spread = 1
	if got := token.freshness(clock.At(start.Round(0).Add(2*time.Hour)), 15*time.Minute); got != expired {
		t.Errorf("two hours later: got %d", got)
	}
	if got := token.freshness(clock.At(start.Round(0).Add(-time.Hour)), 15*time.Minute); got != fresh {
		t.Errorf("an hour earlier: got %d", got)
	}
}

// The renewal point varies by a tenth either way, and is never pushed beyond
// what min_remaining guarantees, nor to the very start of the token's life.
func TestRenewalIsSpread(t *testing.T) {
	low, high := math.Inf(1), math.Inf(-1)
	for range 10_000 {
		token := newTestToken("key", "jwt", testNow.Add(time.Hour).Unix(), testNow.Add(time.Hour).Unix(), testNow)
		low, high = min(low, token.spread), max(high, token.spread)
	}
	if low < 0.9 || low > 0.91 || high > 1.1 || high < 1.09 {
		t.Errorf("the factors reach from %v to %v", low, high)
	}
	for _, minRemaining := range []time.Duration{time.Second, 15 * time.Minute, 30 * time.Minute} {
		for _, spread := range []float64{0.9, 1.1} {
			token := steady(time.Hour, time.Hour)
			token.spread = spread
			if got := token.freshness(clock.At(testNow), minRemaining); got != fresh {
				t.Errorf("min_remaining %v, factor %v: a new token is %d", minRemaining, spread, got)
			}
			if got := token.freshness(clock.At(testNow.Add(time.Hour-minRemaining)), minRemaining); got != due {
				t.Errorf("min_remaining %v, factor %v: at min_remaining it is %d", minRemaining, spread, got)
			}
			point := time.Duration(float64(time.Hour+minRemaining) / 2 * spread)
			if got := token.freshness(clock.At(testNow.Add(time.Hour-point-time.Millisecond)), minRemaining); got != fresh {
				t.Errorf("min_remaining %v, factor %v: before its point it is %d", minRemaining, spread, got)
			}
			if got := token.freshness(clock.At(testNow.Add(time.Hour-point+time.Millisecond)), minRemaining); got != due {
				t.Errorf("min_remaining %v, factor %v: behind its point it is %d", minRemaining, spread, got)
			}
		}
	}
}

// Short grants must not turn every request into a mint: a new token is fresh,
// however little the API granted.
func TestNewTokensAreFreshHoweverShort(t *testing.T) {
	for seconds := int64(2); seconds <= 3600; seconds++ {
		for _, asked := range []time.Duration{time.Minute, time.Hour, 30 * 24 * time.Hour} {
			token := newTestToken("key", "jwt", testNow.Unix()+seconds, testNow.Add(asked).Unix(), testNow)
			token.spread = 1.1
			if got := token.freshness(clock.At(testNow), min(asked/2, time.Duration(seconds)*time.Second)); time.Duration(seconds)*time.Second < asked && got != fresh {
				t.Fatalf("%d s of %v: got %d", seconds, asked, got)
			}
		}
	}
}

func TestTokenKnowsItsLife(t *testing.T) {
	token := newTestToken("key", "jwt", testNow.Unix()+90, testNow.Unix()+120, testNow.Add(500*time.Millisecond))
	if token.key() != "key" || token.jwt() != "jwt" || token.exp != testNow.Unix()+90 || token.life != 89500*time.Millisecond || token.asked != 119500*time.Millisecond {
		t.Errorf("got %+v", token)
	}
}

func TestOneRequestRenews(t *testing.T) {
	const workers, rounds = 4, 5000
	tokens := make([]*token, rounds)
	for i := range tokens {
		tokens[i] = steady(time.Hour, time.Hour)
	}
	var winners [rounds]atomic.Int32
	var round atomic.Int32 // the workers go from token to token side by side
	var done sync.WaitGroup
	for range workers {
		done.Go(func() {
			for i := range rounds {
				round.Add(1)
				for round.Load() < int32(workers*i+workers/2) {
					runtime.Gosched()
				}
				if tokens[i].claimRenewal(0) {
					winners[i].Add(1)
				}
			}
		})
	}
	done.Wait()
	for i := range winners {
		if got := winners[i].Load(); got != 1 {
			t.Fatalf("%d requests renew", got)
		}
	}
}

func TestRenewalIsTriedAgainAfterASecond(t *testing.T) {
	token := steady(time.Hour, time.Hour)
	for _, step := range []struct {
		after time.Duration
		want  bool
	}{
		{0, true},
		{0, false},
		{999 * time.Millisecond, false},
		{time.Second, true},
		{1999 * time.Millisecond, false},
		{5 * time.Second, true},
		{5 * time.Second, false},
	} {
		if got := token.claimRenewal(step.after); got != step.want {
			t.Errorf("after %v: got %v", step.after, got)
		}
	}
}
