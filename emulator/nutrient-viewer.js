// Stands in for the Nutrient Web SDK as far as a session token goes: it signs in with the token as the SDK does, refuses
// the first load if the token is refused, asks for another one through onAuthFailed later, and waits for it for 30
// seconds. With a document of the page's own, it uses the token once, when it loads. It shows no document, but what the token
// says. Served at /emulator/nutrient-viewer.js by dws_emulator.
(() => {
	"use strict";

	const AUTH_TIMEOUT = 30_000; // ms

	const instances = new Map(); // by container

	class NutrientViewerError extends Error {
		name = "NutrientViewerError";
	}

	function decode(jwt) {
		try {
			const bytes = Uint8Array.from(atob(jwt.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
			return JSON.parse(new TextDecoder().decode(bytes));
		} catch {
			throw new NutrientViewerError("session is not a JSON Web Token");
		}
	}

	async function signIn(jwt) {
		const claims = decode(jwt);
		const id = claims.document_id ?? claims.allowed_documents?.[0]?.document_id;
		if (!claims.server_url || !id) {
			throw new NutrientViewerError("session names no server or no document");
		}
		const response = await fetch(`${claims.server_url}i/d/${encodeURIComponent(id)}/auth`, {
			method: "POST",
			credentials: "include",
			headers: { "Content-Type": "application/json", "PSPDFKit-Platform": "web", "PSPDFKit-Version": "stand-in" },
			body: JSON.stringify({ jwt }),
		});
		if (!response.ok) {
			const error = new NutrientViewerError(await response.text());
			error.refused = response.status === 401 || response.status === 403;
			throw error;
		}
		return { id, claims, ...(await response.json()) };
	}

	// For documents that the page brings: the session permits the SDK to open one. The SDK knows the address of its service; the
	// stand-in's is in its tokens.
	async function authorize(jwt, { document: source, hostedBaseUrl }) {
		const claims = decode(jwt);
		const response = await fetch(`${hostedBaseUrl ?? claims.server_url}i/viewer/standalone/auth`, {
			method: "POST",
			headers: { Accept: "application/json", Authorization: `Bearer ${jwt}`, "Content-Type": "application/json", "PSPDFKit-Platform": "web", "PSPDFKit-Version": "stand-in" },
			body: "{}",
		});
		if (!response.ok) {
			throw new NutrientViewerError(`DWS Viewer API authorization failed: ${(await response.json()).details}`);
		}
		const bytes = typeof source === "string" ? await (await fetch(source)).arrayBuffer() : source;
		if (new TextDecoder("latin1").decode(bytes.slice(0, 5)) !== "%PDF-") {
			throw new NutrientViewerError("document is no PDF");
		}
		return { claims, bytes: bytes.byteLength };
	}

	class Instance {
		#session;
		#configuration;
		#refreshing;
		#given; // takes the next session while one is waited for
		#view;

		constructor(configuration, container) {
			this.#session = configuration.session;
			this.#configuration = configuration;
			this.#view = container.appendChild(document.createElement("div"));
			this.#view.className = "nutrient-viewer-stand-in";
			this.#view.style.cssText = "box-sizing: border-box; height: 100%; padding: 1rem; border: 2px dashed; font: 1rem/1.5 system-ui; opacity: 0.8";
		}

		show(signedIn) {
			const left = Math.round(signedIn.claims.exp - Date.now() / 1000);
			const what = signedIn.bytes ? `The page's own document, ${signedIn.bytes} bytes` : `Document ${signedIn.id} (${signedIn.permissions.join(", ")})`;
			this.#view.textContent = `${what}${
				signedIn.claims.user_id ? ` for ${signedIn.claims.user_id}` : ""
			}, session good for ${left} s. This stands in for the Nutrient Web SDK.`;
		}

		setSession(session) {
			if (this.#configuration.document) {
				console.warn("`setSession` is only supported in server-backed mode.");
				return;
			}
			if (typeof session !== "string") {
				throw new NutrientViewerError("setSession takes a JSON Web Token");
			}
			this.#session = session;
			this.#given?.();
		}

		// What the SDK does whenever somebody turns a page: a call that the server refuses once the session has expired.
		async request() {
			if (this.#configuration.document) {
				return; // it is all in the page
			}
			let signedIn;
			try {
				signedIn = await signIn(this.#session);
			} catch (error) {
				if (!error.refused) {
					throw error;
				}
				signedIn = await (this.#refreshing ??= this.#refresh().finally(() => (this.#refreshing = undefined)));
			}
			this.show(signedIn);
		}

		async #refresh() {
			try {
				return await signIn(this.#session); // the old one, once more
			} catch (error) {
				if (!error.refused || !this.#configuration.onAuthFailed) {
					throw error;
				}
			}
			let timer;
			const given = new Promise((resolve, reject) => {
				const error = new NutrientViewerError("Auth refresh timed out: setSession was not called within 30 seconds.");
				timer = setTimeout(reject, AUTH_TIMEOUT, error);
				this.#given = resolve;
				// A callback that fails ends the wait. One that returns does not: setSession() does.
				new Promise((called) => called(this.#configuration.onAuthFailed())).catch(reject);
			});
			try {
				await given;
			} finally {
				clearTimeout(timer);
				this.#given = undefined;
			}
			return signIn(this.#session);
		}

		remove() {
			this.#view.remove();
		}
	}

	globalThis.NutrientViewer = {
		version: "stand-in",

		async load(configuration) {
			const { container, session } = configuration;
			const element = typeof container === "string" ? document.querySelector(container) : container;
			if (!element) {
				throw new NutrientViewerError("container is not in the page");
			}
			if (instances.has(element)) {
				throw new NutrientViewerError("container holds a viewer already");
			}
			if (typeof session !== "string") {
				throw new NutrientViewerError("session is missing");
			}
			instances.set(element, undefined);
			try {
				const signedIn = await (configuration.document ? authorize(session, configuration) : signIn(session));
				const instance = new Instance(configuration, element);
				instance.show(signedIn);
				instances.set(element, instance);
				return instance;
			} catch (error) {
				instances.delete(element);
				throw error;
			}
		},

		unload(target) {
			const element = typeof target === "string" ? document.querySelector(target) : target;
			if (!element) {
				throw new NutrientViewerError("there is nothing of that kind to unload");
			}
			for (const [container, instance] of instances) {
				if (instance && (container === element || instance === target)) {
					instance.remove();
					instances.delete(container);
					return true;
				}
			}
			return false;
		},
	};
})();
