// What the page asks the service for: one request at a time for what follows a finger, and patience when it is busy.

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

/** The JSON answer to a GET, or with a body to a POST; a refusal is an Error with the service's own words. */
export async function ask(path, body) {
  const json = body !== undefined && !(body instanceof Blob) && !(body instanceof FormData);
  const given = body === undefined ? {} : { method: "POST", body: json ? JSON.stringify(body) : body };
  for (let tries = 0; ; tries++) {
    let answer;
    try {
      answer = await fetch(path, given);
    } catch {
      throw new Error("The service does not answer. Is it still running?");
    }
    if (answer.ok) return answer.json();
    const after = Number(answer.headers.get("Retry-After"));
    if (!after || tries === 4) throw new Error((await answer.json().catch(() => ({}))).error ?? `${answer.status} ${answer.statusText}`);
    await wait(1000 * after);
  }
}

/** Does `work` with what it is called with, one at a time: of what comes meanwhile, the last counts. */
export function latest(work, pause = 60) {
  let next = null;
  let running = false;
  return async (...given) => {
    next = given;
    if (running) return;
    running = true;
    while (next) {
      const now = next;
      next = null;
      await work(...now);
      await wait(pause);
    }
    running = false;
  };
}

/** `work` whose refusals are said in the section that it belongs to, until it goes well again. */
export function said(section, work) {
  const fault = section.querySelector(".fault");
  return async (...given) => {
    try {
      await work(...given);
      fault.textContent = "";
    } catch (error) {
      fault.textContent = error.message;
    }
  };
}
