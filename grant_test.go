package viewersession

import (
	"context"
	"encoding/json"
	"errors"
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

	"github.com/viewersession/caddy-viewer-session/internal/clock"
)

// granting is an API whose tokens carry these claims, and the exp asked for.
func granting(claims string) func(apiRequest) (*http.Response, error) {
	return func(r apiRequest) (*http.Response, error) {
		payload := strings.TrimSuffix(claims, "}") + fmt.Sprintf(`,"exp":%d}`, r.exp)
		if claims == `{}` {
			payload = fmt.Sprintf(`{"exp":%d}`, r.exp)
		}
		return respond(&http.Request{URL: testEndpoint}, 201, fmt.Sprintf(`{"jwt":%q}`, jwtWithPayload(payload))), nil
	}
}

// documentedOnly is an API that refuses requests that name permissions as
// permissions, and answers others.
func documentedOnly(status int, next func(apiRequest) (*http.Response, error)) func(apiRequest) (*http.Response, error) {
	return func(r apiRequest) (*http.Response, error) {
		if strings.Contains(r.body, `"permissions":`) {
			return failing(status)(r)
		}
		return next(r)
	}
}

// TestWhatATokenPermits shows side by side what is used, and what is refused.
func TestWhatATokenPermits(t *testing.T) {
	const notList = "is not a list of names"
	for _, test := range []struct {
		asked, claims string
		extra         string // permissions that were not asked for, or the error of a token that is not understood
		missing       string
		unverified    bool
	}{
		{"read", `{"permissions": ["read"]}`, "", "", false},
		{"read", `{"document_permissions": ["read"]}`, "", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}]}`, "", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["read"]}]}`, "", "", false},
		{"read", `{"permissions": ["read-document"]}`, "", "", false},
		{"read", `{"permissions": ["READ-DOCUMENT", " read "]}`, "", "", false},
		{"read write", `{"permissions": ["write"], "document_permissions": ["read"]}`, "", "", false},
		{"read write download", `{"permissions": ["write", "read", "download"]}`, "", "", false},
		{"Read WRITE", `{"permissions": ["write", "read"]}`, "", "", false},
		{"read", `{"permissions": ["read"], "allowed_operations": ["write", "download", "comments"]}`, "", "", false},
		{"read print", `{"permissions": ["read", "print"]}`, "", "", false},
		{"write", `{"permissions": ["read", "write"]}`, "", "", false},

		// More than was asked for, wherever it stands.
		{"read", `{"permissions": ["read", "write"]}`, "write", "", false},
		{"read", `{"permissions": ["download"]}`, "download", "", false},
		{"read", `{"document_permissions": ["read", "write", "download"]}`, "write and download", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read", "write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["download"]}]}`, "download", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": ["read"], "permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}], "permissions": ["write"]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": ["read"]}, {"document_id": "doc", "permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"allowed_documents": [{"permissions": ["write"]}]}`, "write", "", false},
		{"read", `{"permissions": ["Write"]}`, "write", "", false},
		{"read", `{"permissions": [" download\t"]}`, "download", "", false},
		{"read download", `{"permissions": ["read", "write", "download"]}`, "write", "", false},
		{"write", `{"permissions": ["read", "write", "download"]}`, "download", "", false},
		{"read print", `{"permissions": ["write", "print"]}`, "write", "", false},
		{"read", `{"permissions": ["read write"]}`, "write", "", false},
		{"read", `{"permissions": ["read,download"]}`, "download", "", false},
		{"read", `{"permissions": ["read-document", "write-document"]}`, "write", "", false},
		{"read", `{"permissions": ["read", "write\ufeff"]}`, "write", "", false},
		{"read", `{"permissions": ["read", "\u0000download"]}`, "download", "", false},

		// Less than was asked for.
		{"read write", `{"permissions": ["read"]}`, "", "write", false},
		{"download read write", `{"permissions": ["read"]}`, "", "download write", false},
		{"read print", `{"permissions": ["read"]}`, "", "print", false},

		// Nothing, or nothing that is known.
		{"read", `{}`, "", "", true},
		{"read", `{"permissions": null}`, "", "", true},
		{"read", `{"permissions": []}`, "", "", true},
		{"read", `{"permissions": [""]}`, "", "", true},
		{"read", `{"allowed_documents": [{"document_id": "doc", "permissions": null, "document_permissions": []}]}`, "", "", true},
		{"read", `{"permissions": ["read", "annotate"]}`, "", "", true},
		{"read", `{"permissions": ["edit-annotations"]}`, "", "read", true},

		// What is there in a form that is not known.
		{"read", `{"permissions": "read write"}`, notList, "", false},
		{"read", `{"permissions": {"write": true}}`, notList, "", false},
		{"read", `{"permissions": true}`, notList, "", false},
		{"read", `{"permissions": ["read", 5]}`, notList, "", false},
		{"read", `{"permissions": ["read", null]}`, notList, "", false},
		{"read", `{"permissions": [["write"]]}`, notList, "", false},
		{"read", `{"allowed_documents": [{"document_id": "doc", "document_permissions": "write"}]}`, notList, "", false},
	} {
		asked := splitPermissions([]string{test.asked})
		facts, err := readToken(jwtWithPayload(test.claims), &ask{documentID: "doc", permissions: asked}, 1_800_003_600, testNow)
		if test.extra != "" {
			_, over := errors.AsType[*overGrantError](err)
			if err == nil || !strings.Contains(err.Error(), test.extra) || over != (test.extra != notList) {
				t.Errorf("%s for %s: got %v, want %s", test.claims, test.asked, err, test.extra)
			}
			if over && !strings.HasPrefix(err.Error(), "the token also permits "+test.extra+", which was not asked for, so it is not used; if "+test.extra+" is wanted, ask for it in permissions") {
				t.Errorf("%s for %s: got %v", test.claims, test.asked, err)
			}
			continue
		}
		missing, unverified := facts.grant.doubts(asked)
		if err != nil || strings.Join(missing, " ") != test.missing || (unverified != nil) != test.unverified {
			t.Errorf("%s for %s: got %v, missing %v, unverified %v, want %q, %v", test.claims, test.asked, err, missing, unverified, test.missing, test.unverified)
		}
	}
}

func TestPermissionsAreAskedForUnderBothNames(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.want("doc", resultMinted)
		if got, want := p.api.asked[0].body, `{"allowed_documents":[{"document_id":"doc","document_permissions":["read"],"permissions":["read"]}]`; !strings.HasPrefix(got, want) {
			t.Errorf("got %s, want %s...", got, want)
		}
	})
}

func TestTokenThatPermitsTooMuchIsNotHandedOut(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.WarnLevel)
		p.tenant.logger = zap.New(core)
		p.api.set(granting(`{"permissions": ["read", "write"]}`))
		for range 10 {
			f := p.wantFailure("doc", reasonOverGranted)
			if f.status() != 502 || !f.permanent() || f.endpointTrouble() {
				t.Errorf("status %d, permanent %v", f.status(), f.permanent())
			}
			time.Sleep(100 * time.Millisecond)
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
		p.api.set(nil)
		p.want("other", resultMinted)
		time.Sleep(refusalMemory)
		p.want("doc", resultMinted)
	})
}

func TestRenewalThatPermitsTooMuchLeavesTheValidToken(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		first := p.want("doc", resultMinted)
		p.api.set(granting(`{"permissions": ["read", "download"]}`))
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
		p.api.set(granting(`{"permissions": ["read", "download"]}`))
		if tok, _, f := p.getAnother(t.Context(), testAsk("doc"), first.jwt()); f == nil || f.reason != reasonOverGranted || f.status() != 502 {
			t.Errorf("got %v, %v", tok, f)
		}
		if got := p.want("doc", resultHit); got != first {
			t.Error("another token")
		}
	})
}

func TestSessionPathGivesNoTokenThatPermitsTooMuch(t *testing.T) {
	api := new(fakeAPI)
	h := newTestHandler(t, api, sessionRoutes)
	api.set(granting(`{"permissions": ["read", "write", "download"]}`))
	r, w := newRequest("GET", "/documents/doc/session")
	err := h.ServeHTTP(w, r, appAnswering(204))
	wantStatus(t, err, 502, reasonOverGranted)
	if body := w.Body.String(); body != "" || placeholder(r, "error") != "over_granted" {
		t.Errorf("got %q, error %q", body, placeholder(r, "error"))
	}
	// The honest one beside it: the route asks for read and write.
	api.set(granting(`{"permissions": ["read", "write"]}`))
	r, w = newRequest("GET", "/documents/doc2/session")
	wantSession(t, w, h.ServeHTTP(w, r, appAnswering(204)))
}

// The API may refuse what its guides do not name. Then the documented way is
// tried, and used from then on.
func TestFallbackToTheDocumentedWay(t *testing.T) {
	for _, status := range []int{400, 422} {
		withPool(t, nil, func(t *testing.T, p *poolTest) {
			core, logs := observer.New(zap.WarnLevel)
			p.tenant.logger = zap.New(core)
			p.api.set(documentedOnly(status, granting(`{"document_permissions": ["read"]}`)))
			p.want("a", resultMinted)
			p.wantMints(2)
			if got := p.api.asked[1].body; !strings.HasPrefix(got, `{"allowed_documents":[{"document_id":"a","document_permissions":["read"]}],"exp":`) {
				t.Errorf("sent %s", got)
			}
			p.want("b", resultMinted)
			p.wantMints(3)
			if entries := logs.TakeAll(); len(entries) != 1 || !strings.HasPrefix(entries[0].Message, "the API refuses requests that name permissions in two ways") {
				t.Errorf("logged %v", entries)
			}
			time.Sleep(fallbackMemory - time.Second)
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
			p.api.set(documentedOnly(422, granting(claims)))
			p.wantFailure(fmt.Sprint("doc", i), reasonOverGranted)
			p.wantMints(2 * (i + 1)) // it does not count as having worked
		}
		// With all three there is nothing that could be granted beside.
		p.api.set(documentedOnly(422, granting(`{}`)))
		all := testAsk("all")
		all.permissions = []string{"download", "read", "write"}
		if _, result, f := p.get(t.Context(), all); f != nil || result != resultMinted {
			t.Errorf("got %s, %v", result, f)
		}
		mints := p.api.count()
		// And that is used until something is over-granted.
		p.wantFailure("doc4", reasonOverGranted)
		p.wantMints(mints + 1)
		p.api.set(nil)
		p.want("doc5", resultMinted)
		if got := p.api.asked[len(p.api.asked)-1].body; !strings.Contains(got, `"permissions":["read"]`) {
			t.Errorf("sent %s", got)
		}
	})
}

func TestNoFallback(t *testing.T) {
	for _, test := range []struct {
		name        string
		permissions []string
		answer      func(apiRequest) (*http.Response, error)
		want        reason
		mints       int
	}{
		{"other permissions", []string{"print", "read"}, failing(422), reasonRejected, 1},
		{"another status", []string{"read"}, failing(409), reasonRejected, 1},
		{"404", []string{"read"}, failing(404), reasonRejected, 1},
		{"refused both ways", []string{"read"}, failing(400), reasonRejected, 2},
		{"then throttled", []string{"read"}, documentedOnly(400, failing(429)), reasonThrottled, 2},
		{"then down", []string{"read"}, documentedOnly(400, failing(500)), reasonUnavailable, 2},
		{"then refused", []string{"read"}, documentedOnly(422, failing(401)), reasonKeyRefused, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			withPool(t, nil, func(t *testing.T, p *poolTest) {
				p.api.set(test.answer)
				a := testAsk("doc")
				a.permissions = test.permissions
				if _, _, f := p.get(t.Context(), a); f == nil || f.reason != test.want {
					t.Errorf("got %v, want %s", f, test.want)
				}
				p.wantMints(test.mints)
				p.api.set(nil)
				time.Sleep(time.Minute)
				p.want("other", resultMinted)
				if got := p.api.asked[len(p.api.asked)-1].body; !strings.Contains(got, `"permissions":["read"]`) {
					t.Errorf("sent %s", got)
				}
			})
		})
	}
}

// The documented way is not for permissions that are not documented.
func TestFallbackIsNotForOtherPermissions(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		p.api.set(documentedOnly(400, granting(`{"document_permissions": ["read"]}`)))
		p.want("a", resultMinted)
		a := testAsk("b")
		a.permissions = []string{"print", "read"}
		if _, _, f := p.get(t.Context(), a); f == nil || f.reason != reasonRejected {
			t.Errorf("got %v", f)
		}
	})
}

func TestOddGrantsAreLoggedOnce(t *testing.T) {
	withPool(t, nil, func(t *testing.T, p *poolTest) {
		core, logs := observer.New(zap.WarnLevel)
		p.tenant.logger = zap.New(core)
		write := func(document string) {
			a := testAsk(document)
			a.permissions, a.userID = []string{"read", "write"}, "ann"
			if _, _, f := p.get(t.Context(), a); f != nil {
				t.Error(f)
			}
		}
		for i, claims := range []string{`{}`, `{"permissions": ["read"]}`, `{"permissions": ["read", "write", "` + testJWT(nil) + `", "` + testKey + `"]}`, `{}`} {
			p.api.set(granting(claims))
			write(fmt.Sprint("doc", i))
		}
		want := []string{"what the API's token permits cannot be verified; it is used nevertheless", "the API's token permits less than was asked for"}
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
		p.tenant.logger = zap.New(core)
		p.api.set(granting(`{"permissions": ["read", "annotate", "` + testJWT(map[string]any{"exp": 1}) + `", "` + testKey + `"]}`))
		p.want("doc", resultMinted)
		entries := logs.TakeAll()
		text := fmt.Sprint(entries)
		if len(entries) != 1 || !strings.Contains(text, "annotate") || strings.Contains(text, "eyJ") || strings.Contains(text, testKey) {
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
				a := testAsk("doc")
				a.userID = "ann"
				exp := time.Now().Add(time.Hour).Unix()
				claims["exp"] = exp
				storeName := p.storeName(p.account.Load().cacheKey(string(a.appendKey(nil))))
				entry, err := json.Marshal(storedToken{JWT: testJWT(claims), Minted: time.Now().UnixNano(), AskedExp: exp})
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
		fleet[0].api.set(func(r apiRequest) (*http.Response, error) {
			return granting(`{"permissions": ["read"], "user_id": "` + strings.ToLower(r.user) + `"}`)(r)
		})
		for _, p := range fleet {
			for _, user := range []string{"Ann", "ann"} {
				a := testAsk("doc")
				a.userID = user
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
		key := p.account.Load().cacheKey(string(testAsk("doc").appendKey(nil)))
		exp := time.Now().Add(time.Hour).Unix()
		entry, _ := json.Marshal(storedToken{JWT: signed(1, exp), Minted: time.Now().UnixNano(), AskedExp: exp})
		former := string(append(appendField(nil, p.settings.endpoint), key...))
		if err := store.Put(context.Background(), former, "", entry, time.Hour); err != nil {
			t.Fatal(err)
		}
		p.want("doc", resultMinted)
	})
}
