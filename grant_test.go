package viewersession

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/viewersession/caddy-viewer-session/internal/claims"
	"github.com/viewersession/caddy-viewer-session/internal/clock"
	"github.com/viewersession/caddy-viewer-session/internal/dwstest"
)

// documentedOnly is an API that refuses requests that name permissions as
// permissions, and answers others.
func documentedOnly(status int, next dwstest.Answer) func(dwstest.Request) (*http.Response, error) {
	return func(r dwstest.Request) (*http.Response, error) {
		if strings.Contains(r.Body, `"permissions":`) {
			return dwstest.Failing(status)(r)
		}
		return next(r)
	}
}

func TestPermissionsAreAskedForUnderBothNames(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		if got, want := p.api.Asked[0].Body, `{"allowed_documents":[{"document_id":"doc","document_permissions":["read"],"permissions":["read"]}]`; !strings.HasPrefix(got, want) {
			t.Errorf("got %s, want %s...", got, want)
		}
	})
}

func TestTokenThatPermitsTooMuchIsNotHandedOut(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.WarnLevel)
		p.member.logger = zap.New(core)
		p.api.Set(dwstest.Granting(`{"permissions": ["read", "write"]}`))
		for range 10 {
			f := p.wantFailure("doc", reasonOverGranted)
			if f.reason.status() != 502 || p.minter.Failing("doc", p.now()) {
				t.Errorf("status %d, or the API is held back", f.reason.status())
			}
			time.Sleep(400 * time.Millisecond)
		}
		p.wantMints(1) // it is remembered
		if entries := logs.TakeAll(); len(entries) != 1 || entries[0].Level != zap.ErrorLevel || entries[0].ContextMap()["reason"] != "over_granted" ||
			!strings.Contains(fmt.Sprint(entries[0].ContextMap()["error"]), "permits write, which was not asked for") {
			t.Errorf("logged %v", entries)
		}
		if got := p.status(clock.Now()).Mints["over_granted"]; got != 1 {
			t.Errorf("%d mints counted as over_granted", got)
		}
		// Other documents are not held up, and this one is tried again.
		p.api.Set(nil)
		p.want("other", resultMinted)
		time.Sleep(refusalMemory)
		p.want("doc", resultMinted)
	})
}

func TestRenewalThatPermitsTooMuchLeavesTheValidToken(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		p.api.Set(dwstest.Granting(`{"permissions": ["read", "download"]}`))
		time.Sleep(30 * time.Minute)
		if got := p.want("doc", resultRenewing); got != first {
			t.Error("another token")
		}
		p.wantMints(2)
		time.Sleep(20 * time.Minute) // less than min_remaining is left
		if got := p.want("doc", resultStale); got != first {
			t.Error("another token")
		}
		time.Sleep(10 * time.Minute)
		p.wantFailure("doc", reasonOverGranted)
	})
}

func TestRejectedTokenIsNotReplacedByOneThatPermitsTooMuch(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		p.api.Set(dwstest.Granting(`{"permissions": ["read", "download"]}`))
		if tok, _, f := p.replace(t.Context(), testClaims("doc"), first.jwt()); f == nil || f.reason != reasonOverGranted || f.reason.status() != 502 {
			t.Errorf("got %v, %v", tok, f)
		}
		if got := p.want("doc", resultHit); got != first {
			t.Error("another token")
		}
	})
}

func TestSessionPathGivesNoTokenThatPermitsTooMuch(t *testing.T) {
	api := new(dwstest.API)
	h := newTestHandler(t, api, sessionRoutes)
	api.Set(dwstest.Granting(`{"permissions": ["read", "write", "download"]}`))
	r, w := newRequest("GET", "/documents/doc/session")
	err := h.ServeHTTP(w, r, appAnswering(204))
	wantStatus(t, err, 502, reasonOverGranted)
	if body := w.Body.String(); body != "" || placeholder(r, "error") != "over_granted" {
		t.Errorf("got %q, error %q", body, placeholder(r, "error"))
	}
	// The honest one beside it: the route asks for read and write.
	api.Set(dwstest.Granting(`{"permissions": ["read", "write"]}`))
	r, w = newRequest("GET", "/documents/doc2/session")
	wantSession(t, w, h.ServeHTTP(w, r, appAnswering(204)))
}

// The API may refuse what its guides do not name. Then the documented way is
// tried, and used from then on.
func TestFallbackToTheDocumentedWay(t *testing.T) {
	for _, status := range []int{400, 422} {
		withPool(t, nil, func(t *testing.T, p *poolTest) {
			core, logs := observer.New(zap.WarnLevel)
			p.member.logger = zap.New(core)
			p.api.Set(documentedOnly(status, dwstest.Granting(`{"document_permissions": ["read"]}`)))
			p.want("a", resultMinted)
			p.wantMints(2)
			if got := p.api.Asked[1].Body; !strings.HasPrefix(got, `{"allowed_documents":[{"document_id":"a","document_permissions":["read"]}],"exp":`) {
				t.Errorf("sent %s", got)
			}
			p.want("b", resultMinted)
			p.wantMints(3)
			if entries := logs.TakeAll(); len(entries) != 1 || !strings.HasPrefix(entries[0].Message, "the API refuses requests that name permissions in two ways") {
				t.Errorf("logged %v", entries)
			}
			time.Sleep(time.Hour - time.Second)
			p.want("c", resultMinted)
			p.wantMints(4)
			time.Sleep(time.Second)
			p.want("d", resultMinted)
			p.wantMints(6) // it has been forgotten
		})
	}
}

// Anybody who gets the API to refuse one request must not get a token that
// permits everything by that.
func TestFallbackBelievesNothingUnsaid(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		for i, claims := range []string{`{}`, `{"permissions": []}`, `{"permissions": ["read", "write"]}`} {
			p.api.Set(documentedOnly(422, dwstest.Granting(claims)))
			p.wantFailure(fmt.Sprint("doc", i), reasonOverGranted)
			p.wantMints(2 * (i + 1)) // it does not count as having worked
		}
		// With all three there is nothing that could be granted beside.
		p.api.Set(documentedOnly(422, dwstest.Granting(`{}`)))
		all := testClaims("all")
		all.Permissions = []string{"download", "read", "write"}
		if _, result, f := p.get(t.Context(), all); f != nil || result != resultMinted {
			t.Errorf("got %s, %v", result, f)
		}
		mints := p.api.Count()
		// And that is used until something is over-granted.
		p.wantFailure("doc4", reasonOverGranted)
		p.wantMints(mints + 1)
		p.api.Set(nil)
		p.want("doc5", resultMinted)
		if got := p.api.Asked[len(p.api.Asked)-1].Body; !strings.Contains(got, `"permissions":["read"]`) {
			t.Errorf("sent %s", got)
		}
	})
}

func TestNoFallback(t *testing.T) {
	for _, test := range []struct {
		name        string
		permissions []string
		answer      dwstest.Answer
		want        reason
		mints       int
	}{
		{"other permissions", []string{"print", "read"}, dwstest.Failing(422), reasonRefused, 1},
		{"another status", []string{"read"}, dwstest.Failing(409), reasonRefused, 1},
		{"404", []string{"read"}, dwstest.Failing(404), reasonRefused, 1},
		{"refused both ways", []string{"read"}, dwstest.Failing(400), reasonRefused, 2},
		{"then throttled", []string{"read"}, documentedOnly(400, dwstest.Failing(429)), reasonThrottled, 2},
		{"then down", []string{"read"}, documentedOnly(400, dwstest.Failing(500)), reasonUnavailable, 2},
		{"then refused", []string{"read"}, documentedOnly(422, dwstest.Failing(401)), reasonKeyRefused, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				p.api.Set(test.answer)
				a := testClaims("doc")
				a.Permissions = test.permissions
				if _, _, f := p.get(t.Context(), a); f == nil || f.reason != test.want {
					t.Errorf("got %v, want %s", f, test.want)
				}
				p.wantMints(test.mints)
				p.api.Set(nil)
				time.Sleep(time.Minute)
				p.want("other", resultMinted)
				if got := p.api.Asked[len(p.api.Asked)-1].Body; !strings.Contains(got, `"permissions":["read"]`) {
					t.Errorf("sent %s", got)
				}
			})
		})
	}
}

// The documented way is not for permissions that are not documented.
func TestFallbackIsNotForOtherPermissions(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.Set(documentedOnly(400, dwstest.Granting(`{"document_permissions": ["read"]}`)))
		p.want("a", resultMinted)
		a := testClaims("b")
		a.Permissions = []string{"print", "read"}
		if _, _, f := p.get(t.Context(), a); f == nil || f.reason != reasonRefused {
			t.Errorf("got %v", f)
		}
	})
}

func TestOddGrantsAreLoggedOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.WarnLevel)
		p.member.logger = zap.New(core)
		write := func(document string) {
			a := testClaims(document)
			a.Permissions, a.UserID = []string{"read", "write"}, "ann"
			if _, _, f := p.get(t.Context(), a); f != nil {
				t.Error(f)
			}
		}
		for i, claims := range []string{`{}`, `{"permissions": ["read"]}`, `{"permissions": ["read", "write", "` + dwstest.JWT(nil) + `", "` + dwstest.Key + `"]}`, `{}`} {
			p.api.Set(dwstest.Granting(claims))
			write(fmt.Sprint("doc", i))
		}
		want := []string{"what the API's token permits cannot be verified; using it nevertheless", "the API's token permits less than was asked for"}
		var got []string
		for _, entry := range logs.TakeAll() {
			got = append(got, entry.Message)
		}
		if !slices.Equal(got, want) {
			t.Errorf("logged %q, want %q", got, want)
		}
	})
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.WarnLevel)
		p.member.logger = zap.New(core)
		p.api.Set(dwstest.Granting(`{"permissions": ["read", "annotate", "` + dwstest.JWT(map[string]any{"exp": 1}) + `", "` + dwstest.Key + `"]}`))
		p.want("doc", resultMinted)
		entries := logs.TakeAll()
		text := fmt.Sprint(entries)
		if len(entries) != 1 || !strings.Contains(text, "annotate") || strings.Contains(text, "eyJ") || strings.Contains(text, dwstest.Key) {
			t.Errorf("logged %v", text)
		}
	})
}

// What another gateway has put into the store is checked as what the API says.
func TestStoredTokenThatPermitsTooMuch(t *testing.T) {
	for name, claims := range map[string]map[string]any{
		"too much":        {"permissions": []string{"read", "write"}},
		"another's":       {"permissions": []string{"read"}, "user_id": "bob"},
		"in another case": {"permissions": []string{"read"}, "user_id": "ANN"},
		"an odd document": {"permissions": []string{"read"}, "allowed_documents": []string{"doc"}},
	} {
		t.Run(name, func(t *testing.T) {
			withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
				p := fleet[0]
				a := testClaims("doc")
				a.UserID = "ann"
				exp := time.Now().Add(time.Hour).Unix()
				claims["exp"] = exp
				storeName := p.shared.name(p.keys.cacheKey(string(a.AppendKey(nil))))
				entry, err := json.Marshal(storedToken{JWT: dwstest.JWT(claims), Minted: time.Now().UnixNano(), AskedExp: exp})
				if err != nil {
					t.Fatal(err)
				}
				if err := store.Put(t.Context(), storeName, "", entry, time.Hour); err != nil {
					t.Fatal(err)
				}
				if _, result, f := p.get(t.Context(), a); f != nil || result != resultMinted {
					t.Errorf("got %s, %v", result, f)
				}
				synctest.Wait()
				p.wantMints(1)
				if reflect.DeepEqual(store.entries[storeName].data, entry) {
					t.Error("the entry has not been overwritten")
				}
			})
		})
	}
}

// Of two users who differ in case alone, one must not get the other's token by
// way of the store. The API that folds them locks neither out.
func TestUsersThatDifferInCaseAreNotShared(t *testing.T) {
	withFleet(t, 2, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		fleet[0].api.Set(func(r dwstest.Request) (*http.Response, error) {
			return dwstest.Granting(`{"permissions": ["read"], "user_id": "` + strings.ToLower(r.User) + `"}`)(r)
		})
		for _, p := range fleet {
			for _, user := range []string{"Ann", "ann"} {
				a := testClaims("doc")
				a.UserID = user
				_, result, f := p.get(t.Context(), a)
				if f != nil {
					t.Errorf("%s: %v", user, f)
				}
				want := resultMinted
				if user == "ann" && p == fleet[1] {
					want = resultShared
				}
				if result != want {
					t.Errorf("%s: %s, want %s", user, result, want)
				}
				synctest.Wait()
			}
		}
		store.wantNothingLocked(t)
		if len(store.entries) != 1 {
			t.Errorf("%d entries in the store, want ann's alone", len(store.entries))
		}
	})
}

// Entries of gateways that did not check what is granted are not read.
func TestStoreNamesHaveAVersion(t *testing.T) {
	withFleet(t, 1, func(t *testing.T, fleet []*poolTest, store *fakeStore) {
		p := fleet[0]
		key := p.keys.cacheKey(string(testClaims("doc").AppendKey(nil)))
		exp := time.Now().Add(time.Hour).Unix()
		entry, _ := json.Marshal(storedToken{JWT: dwstest.Token(1, exp), Minted: time.Now().UnixNano(), AskedExp: exp})
		previous := string(append(claims.AppendField(nil, p.settings.endpoint), key...))
		if err := store.Put(context.Background(), previous, "", entry, time.Hour); err != nil {
			t.Fatal(err)
		}
		p.want("doc", resultMinted)
	})
}
