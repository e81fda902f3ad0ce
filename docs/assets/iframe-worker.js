// Browsers start no workers from files. There, this runs a worker's script in a hidden frame.
// It replaces the script from a CDN that the theme would load otherwise.
"use strict";

class IFrameWorker extends EventTarget {
  constructor(address) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    const scope = frame.contentWindow;
    scope.importScripts = async (...addresses) => {
      for (const each of addresses) await IFrameWorker.#load(scope.document, each);
    };
    scope.postMessage = (data) => {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    };
    this.#scope = scope;
    this.#ready = IFrameWorker.#load(scope.document, address);
  }

  async postMessage(data) {
    await this.#ready;
    this.#scope.dispatchEvent(new MessageEvent("message", { data }));
  }

  terminate() {
    this.#scope.frameElement.remove();
  }

  #scope;
  #ready;

  static #load(target, address) {
    return new Promise((loaded, failed) => {
      const script = target.createElement("script");
      script.src = address;
      script.onload = loaded;
      script.onerror = () => failed(new Error(`Not found: ${address}`));
      target.body.append(script);
    });
  }
}

if (location.protocol === "file:") {
  window.IFrameWorker = IFrameWorker; // the theme's worker looks for this name
  window.Worker = IFrameWorker;
}
